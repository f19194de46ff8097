"""Finding nodes."""

import fiddle as fdl
import pytest

from maxfdl.errors import MutationError
from maxfdl.graph import iterate, nodes_of
from tests.graph.toys import ops
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers


def test_finds_all_nodes_of_a_class():
    assert len(nodes_of(small.experiment(depth=3), layers.Attention)) == 3


def test_a_base_class_finds_its_subclasses():
    cfg = fdl.Partial(layers.LoraLinear, dot=fdl.Config(ops.Fp8Dot))
    assert len(nodes_of(cfg, layers.Linear)) == 1
    assert len(nodes_of(cfg, ops.Dot)) == 1


def test_a_predicate_finds_what_it_accepts():
    def has_many_heads(node):
        return getattr(node, "num_heads", 0) > 3

    assert len(nodes_of(small.experiment(depth=2), has_many_heads)) == 2


def test_a_shared_node_is_found_once():
    shared = small.linear()
    cfg = fdl.Partial(layers.Attention, q=shared, k=shared)
    assert nodes_of(cfg, layers.Linear) == [shared]
    assert [path for path, _ in iterate(cfg)] == ["", "q", "q.dot"]


def test_says_what_is_there_when_nothing_matches():
    with pytest.raises(MutationError) as error:
        nodes_of(small.linear(), layers.Attention)
    assert str(error.value) == (
        "No Attention in this graph, which holds Dot, Linear. Has an earlier mutation"
        " replaced it?"
    )
