"""The facts of a run, against formulas and against arrays that lie on 8 devices."""

import functools

import fiddle as fdl
import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.report.facts import Facts, facts_of
from maxfdl.sharding.room import bytes_per_device
from maxfdl.train.program import Program

SMOKE = "experiments.llama2_smoke"


@functools.cache
def facts(expression: str, devices_here: int = 1) -> Facts:
    return facts_of(graph.build(graph.resolve(expression)), devices_here)


def llama2(size: str) -> str:
    return f"experiments.llama2_nnx(size={size})"


@pytest.mark.parametrize(
    "size, count",
    [("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192)],
)
def test_the_published_sizes_have_the_published_counts(size, count):
    assert facts(llama2(size)).num_parameters == count


def test_parameters_are_counted_by_role():
    assert facts(llama2("7b")).num_parameters_by_role == {
        "kernel": 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000,
        "embedding": 32000 * 4096,
        "scale": 65 * 4096,
    }


def test_a_packed_kernel_counts_as_its_weights_and_takes_fewer_bytes():
    plain, packed = facts(SMOKE), facts(f"{SMOKE}+quantize_weights(format=int4)")
    assert packed.num_parameters_by_role == plain.num_parameters_by_role
    kernels = [each for each in packed.parameters if not each.trained]
    # A float32 scale for 32 weights of 4 bits.
    count = sum(each.size for each in kernels)
    assert sum(each.bytes_per_device for each in kernels) == count * 5 / 8
    assert packed.num_frozen_parameters == count


def flops_per_token(model, vocab: int, length: int) -> int:
    """`6 N + 6 L H K T`, with N the weights that multiply something.

    D width, L layers, H query and G key-value heads of width K, F hidden width, V
    vocabulary, T tokens a row. A token's forward pass spends 2 FLOPs per weight of N;
    the table is looked up, not multiplied. Its scores and its mix take 4 H K per key
    and it sees T / 2 keys on average. The backward pass is twice the forward pass.
    """
    stack = model.decoder.stacks[0]
    attention, hidden = stack.layers[0].attention, stack.layers[0].mlp.hidden
    heads, groups = attention.num_heads, attention.num_kv_heads
    width, depth = model.features, stack.repeats
    projections = 2 * width * attention.head_dim * (heads + groups)
    weights = depth * (projections + 3 * width * hidden) + width * vocab
    return 6 * weights + 6 * depth * heads * attention.head_dim * length


@pytest.mark.parametrize(
    "expression",
    [SMOKE, f"{SMOKE}+to_linen+unroll_layers", llama2("7b"), llama2("70b")],
)
def test_flops_per_token_are_those_of_the_closed_formula(expression):
    config = graph.resolve(expression)
    expected = flops_per_token(
        config.model, config.model.vocab_size, config.sequence_length
    )
    assert facts(expression).flops_per_token == expected
    assert (
        facts(expression).flops_per_step == expected * facts(expression).tokens_per_step
    )


def test_recomputation_is_no_work_of_the_model():
    assert facts(f"{SMOKE}+remat(full)").flops_per_step == facts(SMOKE).flops_per_step


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_bubbles_of_a_pipeline_are_no_work_of_the_model(schedule):
    piped = f"{SMOKE}+pipeline(stages=2,microbatches=4,schedule={schedule})"
    assert facts(piped).flops_per_step == facts(SMOKE).flops_per_step


@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_experts_count_as_many_flops_on_any_mesh(factor):
    plain = f"experiments.zoo_smoke(family=mixtral)+capacity(factor={factor})"
    on_mesh = f"{plain}+mesh(fsdp=2,expert=4)"
    assert facts(on_mesh, 8).flops_per_step == facts(plain).flops_per_step


def test_looking_at_scores_is_no_work_of_the_model_either():
    clipped = facts(f"{SMOKE}+use_muonclip")
    assert clipped.flops_per_step == facts(SMOKE).flops_per_step


def test_what_lies_on_the_host_is_told_apart():
    alone, found = facts(SMOKE), facts(f"{SMOKE}+offload_optimizer")
    both = zip(
        found.state_bytes_per_device.values(),
        found.state_bytes_on_host.values(),
        strict=True,
    )
    assert [sum(pair) for pair in both] == [*alone.state_bytes_per_device.values()]
    assert set(alone.state_bytes_on_host.values()) == {0}
    assert found.state_bytes_per_device["optimizer"] == 4  # the count of steps
    assert found.state_bytes_on_host["params"] == 0


@pytest.mark.parametrize(
    ("mutations", "expected"),
    [
        ("", (4, 0, 8)),
        ("+moment_storage(kind=bfloat16)", (4, 0, 4)),
        ("+moment_storage(kind=eight_bit)", (4, 0, 2 + 8 / 256)),
        ("+param_dtype(bfloat16)+stochastic_rounding", (2, 0, 8)),
        ("+param_dtype(bfloat16)+master_weights", (2, 4, 8)),
    ],
)
def test_bytes_of_a_parameter_by_what_is_kept_of_it(mutations, expected):
    found = facts(llama2("7b") + mutations)
    state = found.state_bytes_per_device
    for name, size in zip(("params", "masters", "optimizer"), expected, strict=True):
        assert state[name] / found.num_parameters == pytest.approx(size, rel=1e-6)


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8", "fsdp=4,tensor=2"])
def test_bytes_per_device_are_those_of_arrays_on_eight_devices(mesh):
    expression = f"{SMOKE}+mesh({mesh})"
    found = facts(expression, 8)
    experiment = graph.build(graph.resolve(expression))
    trainer = experiment.make_trainer(experiment.make_sharding())
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        program.abstract_state(),
    )
    for name, tree in state.items():
        on_one = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
        assert found.state_bytes_per_device[name] == on_one
        assert bytes_per_device(tree) == on_one
    parameters = {p.path: p for p in found.parameters}
    for path, array in jax.tree.leaves_with_path(state["params"]):
        parameter = parameters[jax.tree_util.keystr(path, simple=True, separator="/")]
        assert parameter.bytes_per_device == array.addressable_shards[0].data.nbytes
        assert parameter.sharding == tuple(array.sharding.spec)
        assert (parameter.shape, parameter.dtype) == (array.shape, array.dtype.name)


def test_both_families_have_the_same_facts():
    assert facts(f"{SMOKE}+to_linen").parameters == facts(SMOKE).parameters


def test_the_mesh_may_have_more_devices_than_there_are_here():
    found = facts(f"{llama2('7b')}+mesh(fsdp=64,tensor=4)")
    assert (found.num_devices, found.batch_sharding) == (256, ("fsdp", None))
    query = next(p for p in found.parameters if p.path.endswith("query/kernel"))
    assert query.axes == ("layers", "embed", "heads", "head_dim")
    assert query.sharding == (None, "fsdp", "tensor", None)
    assert query.bytes_per_device == 32 * (4096 // 64) * (32 // 4) * 128 * 4


@pytest.mark.parametrize(
    "mesh, devices_here, sizes",
    [
        ("fsdp=-1", 8, {"data": 1, "fsdp": 8, "tensor": 1}),
        ("fsdp=-1,tensor=2", 8, {"data": 1, "fsdp": 4, "tensor": 2}),
        ("fsdp=-1,tensor=2", 1, {"data": 1, "fsdp": 1, "tensor": 2}),
        ("data=2", 8, {"data": 2, "fsdp": 1, "tensor": 1}),
    ],
)
def test_the_rest_of_the_mesh_is_what_is_here_or_one(mesh, devices_here, sizes):
    assert facts(f"{SMOKE}+mesh({mesh})", devices_here).mesh == sizes


@pytest.mark.parametrize(
    "mesh, message",
    [
        ("tensor=8", "decoder/stacks_0/layers_0/attention/.* cannot be cut into 8"),
        ("fsdp=3", "batch_size, sequence_length: dim 'batch' of size 8 cannot be cut"),
        ("fsdp=-1,tensor=3", "does not fit 8 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        facts(f"{SMOKE}+mesh({mesh})", 8)


@functools.cache
def whole_numbers() -> dict:
    """Returns where the first of each field that holds a whole number is, by class."""
    found = {}
    for family in ("gemma3", "deepseek_v3", "gpt2", "llama4", "qwen3_next"):
        expression = f"experiments.zoo_smoke(family={family})"
        for path, node in graph.iterate(graph.resolve(expression)):
            for name, value in node.__arguments__.items():
                if type(value) is int:
                    where = f"{path}.{name}" if path else name
                    found.setdefault((fdl.get_callable(node), name), (family, where))
    return found


@pytest.mark.parametrize(
    "absurd", [pytest.param(10**30, marks=pytest.mark.slow), 10**12]
)
def test_absurd_sizes_are_refused_or_counted_and_never_allocated(absurd):
    refused = []
    for family, path in whole_numbers().values():
        config = graph.resolve(f"experiments.zoo_smoke(family={family})")
        try:
            facts_of(graph.build(graph.set_value(config, path, str(absurd))), 1)
        except UserError as error:
            refused.append(path)
            assert len(str(error)) < 500
    assert {"batch_size", "model.features", "model.vocab_size"} < {*refused}
