"""A word, a number or a list where a node belongs is refused, in every experiment."""

import functools

import fiddle as fdl
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError
from maxfdl.graph.annotations import wants_node
from maxfdl.graph.signatures import hint
from tests.experiments.catalogue import expressions
from tests.hf.variants import FAMILIES
from tests.mutations.cases import CASES, OF_EXPERTS, apply

LITERALS = ("notes/*.jsonl", "FirstFit", 3, 0.5, True, ["x"], [1, 2], {"a": 1}, (3,))


def graphs():
    """Every experiment and family of models in NNX and in Linen, and all mutations."""
    found = [graph.resolve(each) for each in expressions()]
    found += [zoo_smoke.experiment(family) for family in (*FAMILIES, "gpt3")]
    found += [apply(each, "to_linen") for each in found]
    bases = {name: zoo_smoke.experiment("mixtral") for name in OF_EXPERTS}
    mutated = [apply(bases.get(n, found[0]), case.call) for n, case in CASES.items()]
    return found + mutated


def holds_node(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(holds_node, value))
    return isinstance(value, fdl.Buildable)


@functools.cache
def node_fields():
    """For each field of each class that holds nodes somewhere: such a node, the field.

    A field that takes words besides, as `remat` does, is left out.
    """
    found = {}
    for cfg in graphs():
        for _, node in graph.iterate(cfg):
            for name, value in node.__arguments__.items():
                if holds_node(value) and name != "remat":
                    found.setdefault((fdl.get_callable(node), name), node)
    return [(node, name) for (_, name), node in found.items()]


def test_the_walk_found_them():
    names = {name for _, name in node_fields()}
    assert {"data", "source", "tokenizer", "packing", "stacks", "rule", "dot"} <= names
    assert len(node_fields()) > 190


def test_each_has_a_type_that_only_nodes_fit():
    for node, name in node_fields():
        assert wants_node(hint(node, name)), (fdl.get_callable(node), name)


@pytest.mark.parametrize("value", LITERALS, ids=repr)
def test_a_command_that_sets_a_literal_is_refused_in_one_line(value):
    for node, name in node_fields():
        with pytest.raises(ConfigError) as error:
            graph.set_value(node, name, value)
        message = str(error.value)
        assert message.startswith((f"{name}=", f"{name}[")) and "\n" not in message
        assert "expected" in message and message.endswith(".")


@pytest.mark.parametrize("value", LITERALS, ids=repr)
def test_a_literal_that_python_sets_is_refused_with_its_line(value):
    for node, name in node_fields():
        changed = fdl.copy_with(node)
        setattr(changed, name, value)
        with pytest.raises(ConfigError, match=f"{name}.* is not .*node belongs there"):
            graph.validate(changed)


def test_the_sentence_says_what_to_write_instead():
    with pytest.raises(ConfigError) as error:
        graph.resolve("experiments.llama2_nnx", ["data.source=notes/*.jsonl"])
    assert str(error.value) == (
        "data.source=notes/*.jsonl: expected Source, got str 'notes/*.jsonl'. Use the"
        " mutation text_files(files=...), king_james or python_source instead."
    )
