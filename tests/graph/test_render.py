"""The text of a graph."""

import fiddle as fdl

from maxfdl.graph import as_text, copy
from tests.graph.toys import ops
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers

GOLDEN = """\
<root>: Config[tests.graph.toys.root.Experiment]
model: Partial[tests.graph.toys.nnx.layers.Decoder]
model.layers[0]: Partial[tests.graph.toys.nnx.layers.Attention]
model.layers[0].q: Partial[tests.graph.toys.nnx.layers.Linear]
model.layers[0].q.dot: Config[tests.graph.toys.ops.Dot]
model.layers[0].q.dtype = 'float32'
model.layers[0].k: Partial[tests.graph.toys.nnx.layers.Linear]
model.layers[0].k.dot: Config[tests.graph.toys.ops.Dot]
model.layers[0].k.dtype = 'float32'
model.layers[0].num_heads = 4
model.layers[0].num_kv_heads = 2
model.label = ''
model.features = 8
optimizer: Partial[tests.graph.toys.root.sgd]
optimizer.learning_rate = 0.1
rules = {'embed': 'fsdp', 'vocab': None}
"""


def test_one_line_per_set_field_in_declaration_order():
    assert as_text(small.experiment(depth=1)) == GOLDEN


def test_the_order_in_which_fields_were_set_does_not_show():
    cfg = fdl.Partial(layers.Attention, num_heads=1)
    cfg.q = small.linear()
    other = fdl.Partial(layers.Attention, q=small.linear())
    other.num_heads = 1
    assert as_text(cfg) == as_text(other)


def test_a_shared_node_shows_once_and_then_as_a_reference():
    shared = small.linear()
    text = as_text(fdl.Partial(layers.Attention, q=shared, k=shared))
    assert "\nk -> q\n" in text and "k.dot" not in text


def test_addresses_do_not_show():
    class Odd:
        pass

    cfg = fdl.Config(ops.Fp8Dot, forward=[Odd(), len, ops.Dot])
    text = as_text(cfg)
    assert "0x" not in text and "builtins.len" in text
    assert text == as_text(copy(cfg))


def test_sets_are_sorted():
    assert "{'a', 'b', 'c'}" in as_text(fdl.Config(ops.Fp8Dot, forward={"c", "a", "b"}))
