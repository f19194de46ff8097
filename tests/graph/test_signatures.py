"""Fiddle sees the real constructors, and we know who supplies each field."""

import inspect

import fiddle as fdl
import pytest
from flax import linen, nnx

from maxfdl.graph import signatures
from tests.graph.toys.linen import layers as linen_layers
from tests.graph.toys.nnx import layers as nnx_layers


def test_a_misspelt_field_of_a_stock_nnx_layer_is_refused():
    with pytest.raises(TypeError, match="misspelt"):
        fdl.Config(nnx.Linear, misspelt=1)


def test_a_misspelt_field_of_our_nnx_layer_is_refused():
    with pytest.raises(TypeError, match="use_bais"):
        fdl.Partial(nnx_layers.Linear, use_bais=True)


def test_instances_keep_their_own_signature():
    layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert list(inspect.signature(layer).parameters)[0] == "inputs"


def test_a_class_without_a_constructor_takes_nothing():
    class Empty(nnx.Module):
        pass

    assert not inspect.signature(Empty).parameters


def test_publishing_twice_changes_nothing():
    before = vars(type(nnx.Module))["__signature__"]
    signatures.publish_nnx_signatures()
    assert vars(type(nnx.Module))["__signature__"] is before


def test_fields_leave_out_what_the_parent_supplies():
    nnx_node = fdl.Partial(nnx_layers.Linear)
    linen_node = fdl.Partial(linen_layers.Linear)
    assert signatures.fields(nnx_node) == ["dot", "dtype", "use_bias"]
    assert signatures.fields(linen_node) == ["dot", "dtype", "use_bias"]


def test_parent_and_name_of_linen_never_appear():
    assert not {"parent", "name"} & set(signatures.fields(fdl.Config(linen.Dense)))


def test_required_fields_have_no_default_and_no_parent_to_pass_them():
    node = fdl.Partial(nnx_layers.Attention)
    assert signatures.required(node) == ["q", "k", "num_heads", "num_kv_heads"]
