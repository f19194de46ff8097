"""The modules of a graph."""

import pytest

from maxfdl import graph
from maxfdl.report.modules import modules_of


def modules(expression: str) -> dict:
    return {m.path: m for m in modules_of(graph.resolve(expression).model)}


@pytest.mark.parametrize("backend", ["to_nnx", "to_linen"])
def test_paths_are_those_of_the_parameter_tree(backend):
    found = modules(f"experiments.llama2_smoke+{backend}")
    assert list(found)[:5] == [
        "",
        "embedding",
        "decoder",
        "decoder/stacks_0",
        "decoder/stacks_0/layers_0",
    ]
    layer = found["decoder/stacks_0/layers_0"]
    assert (layer.name, layer.class_name) == ("layers[0]", "DecoderLayer")


def test_fields_are_what_the_graph_sets_besides_children():
    found = modules("experiments.llama2_smoke+remat(full)")
    assert found["decoder"].fields == {}
    assert found["decoder/stacks_0"].fields == {
        "repeats": "2",
        "execution": "Scan",
        "remat": "full",
    }
    assert found["decoder/stacks_0/layers_0/attention"].fields == {
        "num_heads": "4",
        "num_kv_heads": "2",
        "head_dim": "8",
        "rope": "Rope(theta=10000.0)",
    }


def test_a_leaf_op_shows_unless_it_is_the_plain_one():
    config = graph.resolve("experiments.llama2_smoke")
    layer = config.model.decoder.stacks[0].layers[0]
    layer.attention.attention.implementation = "cudnn"
    fields = {m.path: m.fields for m in modules_of(config.model)}
    attention = "decoder/stacks_0/layers_0/attention"
    assert fields[attention]["attention"] == "DotProductAttention(implementation=cudnn)"
    assert "dot" not in fields[f"{attention}/query"]


def test_a_layer_that_is_listed_twice_is_two_modules():
    config = graph.resolve("experiments.llama2_smoke")
    stack = config.model.decoder.stacks[0]
    stack.layers = [stack.layers[0]] * 2
    found = {m.path: m for m in modules_of(config.model)}
    first = found["decoder/stacks_0/layers_0/mlp/gate"]
    second = found["decoder/stacks_0/layers_1/mlp/gate"]
    assert (first.class_name, first.fields) == (second.class_name, second.fields)
