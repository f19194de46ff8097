"""Facts as text."""

import pytest

from maxfdl import graph
from maxfdl.report.facts import facts_of
from maxfdl.report.modules import modules_of
from maxfdl.report.text import spec_text, summary, tree
from maxfdl.sharding.room import size_text


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (26_953_662_464, "25.1 GiB"),
        (2**53, "8.0 PiB"),
        (2**72, "4096.0 EiB"),
    ],
)
def test_bytes_are_in_the_unit_that_fits(number, text):
    assert size_text(number) == text


def test_a_sharding_reads_as_a_partition_spec():
    spec = (None, "fsdp", ("data", "tensor"))
    assert spec_text(spec) == "P(None, 'fsdp', ('data', 'tensor'))"


@pytest.mark.parametrize("backend", ["to_nnx", "to_linen"])
def test_every_parameter_has_one_line_under_its_module(backend):
    config = graph.resolve(f"experiments.llama2_smoke+{backend}")
    parameters = facts_of(graph.build(config), 1).parameters
    modules = list(modules_of(config.model))
    lines = tree(modules, parameters)
    assert len(lines) == len(modules) + len(parameters)
    at = next(i for i, line in enumerate(lines) if "gate: Linear" in line)
    assert lines[at].split() == ["gate:", "Linear", "initializer=FanIn"]
    assert (
        lines[at + 1].split()
        == (
            "kernel [2, 32, 64] float32 layers, embed, mlp P(None, None, None) 16.0 KiB"
        ).split()
    )


def test_a_stack_takes_a_line_per_parameter_however_deep_it_is():
    config = graph.resolve("experiments.llama2_nnx(size=70b)")
    facts = facts_of(graph.build(config), 1)
    assert len(tree(list(modules_of(config.model)), facts.parameters)) < 40


def test_the_summary_says_how_much_is_frozen():
    config = graph.resolve("experiments.llama2_smoke+freeze(paths=('embedding',))")
    first, *_ = summary(facts_of(graph.build(config), 1), ["xla"], "cpu", 1)
    assert first.endswith("160 scale), of which 10,240 are frozen")


def test_the_summary_says_what_masters_take():
    config = graph.resolve(
        "experiments.llama2_smoke+mesh(fsdp=1)+param_dtype(bfloat16)+master_weights"
    )
    lines = summary(facts_of(graph.build(config), 1), ["xla"], "cpu", 1)
    [line] = [line for line in lines if line.startswith("state per device")]
    assert "(params 76.3 KiB, masters 152.6 KiB, optimizer 305.3 KiB)" in line


def test_the_summary_says_what_replicas_and_the_outer_optimizer_take():
    """Of 39,072 parameters, twice weights and two moments, and once a momentum."""
    config = graph.resolve(
        "experiments.llama2_smoke+mesh(fsdp=1)"
        "+use_diloco(num_replicas=2, sync_period=5)"
    )
    lines = summary(facts_of(graph.build(config), 1), ["xla"], "cpu", 1)
    [line] = [line for line in lines if line.startswith("state per device")]
    assert "(params 152.6 KiB, replicas 915.8 KiB, outer 152.6 KiB)" in line
    assert (
        "replicas: 2, of which a device has 2 (params 305.2 KiB, optimizer 610.5 KiB);"
        " each sends 30.5 KiB per step on average" in lines
    )


def test_columns_line_up():
    config = graph.resolve("experiments.llama2_smoke")
    facts = facts_of(graph.build(config), 1)
    lines = tree(list(modules_of(config.model)), facts.parameters)
    assert len({line.index("float32  ") for line in lines if "P(" in line}) == 1
