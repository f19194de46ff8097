"""Copy and swap."""

import dataclasses
from typing import Annotated, Any, ClassVar

import fiddle as fdl
import pytest

from maxfdl.errors import MutationError
from maxfdl.graph import as_text, copy, swap, without_operational
from maxfdl.graph.tags import ComputeDType
from maxfdl.markers import Operational
from tests.graph.toys import mutations, ops, root
from tests.graph.toys.experiments import small
from tests.graph.toys.linen import layers as linen
from tests.graph.toys.nnx import layers as nnx


def test_a_copy_keeps_sharing_and_is_independent():
    shared = small.linear()
    cfg = fdl.Partial(nnx.Attention, q=shared, k=shared)
    out = copy(cfg)
    assert out == cfg and out.q is out.k and out.q is not shared


def test_swap_keeps_shared_fields_and_sets_the_given_ones():
    node = fdl.Partial(nnx.Linear, use_bias=True, dtype="float32")
    swap(node, nnx.LoraLinear, rank=4)
    assert fdl.get_callable(node) is nnx.LoraLinear
    assert (node.use_bias, node.dtype, node.rank) == (True, "float32", 4)


def test_swap_drops_fields_that_the_target_lacks():
    node = fdl.Partial(nnx.LoraLinear, dtype="float32", rank=4)
    swap(node, nnx.Linear)
    assert "rank" not in node.__arguments__


def test_an_unset_field_keeps_its_meaning_when_defaults_differ():
    node = fdl.Partial(nnx.Linear)  # dtype is float32 by default
    swap(node, nnx.LoraLinear)  # where it would be bfloat16
    assert node.dtype == "float32"


def test_a_field_that_equals_the_old_default_survives():
    node = fdl.Partial(nnx.Linear, dtype="float32")
    swap(node, nnx.LoraLinear)
    assert node.dtype == "float32"


def test_equal_defaults_are_not_written_down():
    node = fdl.Partial(nnx.Linear)
    swap(node, linen.Linear)
    assert not node.__arguments__


def test_tags_of_kept_fields_stay():
    node = fdl.Partial(nnx.Linear, dtype="bfloat16", use_bias=True)
    fdl.add_tag(node, "use_bias", ComputeDType)
    swap(node, linen.Linear)
    assert fdl.get_tags(node, "use_bias") == {ComputeDType}
    assert fdl.get_tags(node, "dtype") == {ComputeDType}


def test_tags_of_dropped_fields_go():
    node = fdl.Partial(nnx.LoraLinear, rank=3)
    fdl.add_tag(node, "rank", ComputeDType)
    swap(node, nnx.Linear)
    assert "rank" not in node.__argument_tags__


def test_swap_to_the_same_callable_only_sets_fields():
    node = fdl.Config(ops.Fp8Dot)
    swap(node, ops.Fp8Dot, forward="e5m2")
    assert node == fdl.Config(ops.Fp8Dot, forward="e5m2")


def test_a_refused_swap_changes_nothing():
    node = fdl.Partial(nnx.Linear, use_bias=True)
    before = as_text(node)
    with pytest.raises(MutationError) as error:
        swap(node, nnx.LoraLinear, rnak=4)
    assert str(error.value) == (
        "tests.graph.toys.nnx.layers.LoraLinear has no field 'rnak'. Did you mean"
        " 'rank'?"
    )
    assert as_text(node) == before
    node.use_bias = False  # and still works


def test_positional_arguments_are_refused():
    def positional(a, /):
        return a

    node = fdl.Config(positional, 1)
    with pytest.raises(MutationError, match="has positional arguments"):
        swap(node, root.sgd)
    assert fdl.get_callable(node) is positional


def test_there_and_back_is_equal():
    cfg = small.experiment()
    assert mutations.to_nnx(mutations.to_linen(cfg)) == cfg


@dataclasses.dataclass
class Reader:
    name: str
    patience: Annotated[int, Operational] = 3


def test_graphs_that_differ_in_operational_fields_are_one_run():
    def graph(name, **settings):
        shared = fdl.Config(Reader, name, **settings)
        return fdl.Config(dict, first=shared, readers=[shared, fdl.Config(Reader, "b")])

    before = graph("a", patience=5)
    out = without_operational(before)
    assert out == without_operational(graph("a")) == graph("a")
    assert out != without_operational(graph("c"))
    assert before == graph("a", patience=5)


@dataclasses.dataclass
class Whole:
    size: int = 1


@dataclasses.dataclass
class Tiled(Whole):
    equivalent_to: ClassVar[type] = Whole
    tiles: int = 2


@dataclasses.dataclass
class Smoothed(Tiled):
    by: float = 0.1


@dataclasses.dataclass
class PerTile:
    adds_up: ClassVar[bool] = False


@dataclasses.dataclass
class Loss:
    over: Annotated[Any, Operational("adds_up")]
    terms: list


def test_a_class_that_is_equivalent_to_another_is_no_other_run():
    whole, tiled = fdl.Config(Whole, size=3), fdl.Config(Tiled, size=3, tiles=4)
    assert without_operational(tiled) == without_operational(whole)
    assert without_operational(tiled) != without_operational(fdl.Config(Whole, size=4))
    assert tiled.tiles == 4
    smoothed = fdl.Config(Smoothed, size=3)
    assert without_operational(smoothed) == smoothed


def test_a_field_is_not_operational_where_a_node_says_that_it_matters():
    def graphs(*terms):
        return [
            without_operational(fdl.Config(Loss, over=over, terms=[*terms]))
            for over in (fdl.Config(Whole, size=3), fdl.Config(Whole, size=4))
        ]

    first, second = graphs(fdl.Config(Whole))
    assert first == second
    first, second = graphs(fdl.Config(Whole), fdl.Config(PerTile))
    assert first != second
