"""What layers are told about a call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.context import Context, Rows

KEY = jax.random.key(0)
ROWS = Rows(jnp.zeros((2, 1), jnp.int32), numbers=jnp.arange(2))
CONTEXT = Context(ROWS, key=KEY)


def same(one, other):
    return np.array_equal(jax.random.key_data(one), jax.random.key_data(other))


def test_a_place_has_one_key_a_row_whoever_asks_first():
    one = CONTEXT.at("mlp").at("dropout").row_keys()
    CONTEXT.at("attention").row_keys()
    assert same(one, CONTEXT.at("mlp").at("dropout").row_keys())


def test_places_repeats_and_steps_have_different_keys():
    at = CONTEXT.at("dropout")
    keys = [
        at.row_keys(),
        CONTEXT.at("other").row_keys(),
        at.for_layer(0).row_keys(),
        at.for_layer(1).row_keys(),
        Context(ROWS, key=jax.random.key(1)).at("dropout").row_keys(),
    ]
    keys = [key for of_place in keys for key in jax.random.key_data(of_place).tolist()]
    assert len(set(map(tuple, keys))) == 5 * 2


def test_the_key_of_a_row_follows_from_its_number():
    at = CONTEXT.at("dropout")
    rows = dataclasses.replace(ROWS, numbers=jnp.asarray([7, 1]))
    other = dataclasses.replace(at, rows=rows)
    assert same(at.row_keys()[1], other.row_keys()[1])
    assert not same(at.row_keys()[0], other.row_keys()[0])


def test_rows_are_cut_with_the_activations():
    rows = Rows(jnp.arange(8).reshape(4, 2), numbers=jnp.arange(4))
    parts = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), rows)
    second = dataclasses.replace(CONTEXT, rows=jax.tree.map(lambda x: x[1], parts))
    np.testing.assert_array_equal(second.places.positions, [[4, 5], [6, 7]])
    whole = dataclasses.replace(CONTEXT, rows=rows)
    assert same(second.row_keys(), whole.row_keys()[2:])


def test_without_a_key_repeats_have_none():
    assert Context(ROWS).for_layer(3).key is None


def test_side_results_lie_under_the_path_of_the_layer():
    context = Context(ROWS)
    context.at("decoder").at("router").emit("load", 7)
    assert context.sinks == {"decoder/router/load": 7}
    with pytest.raises(AssertionError, match="decoder/router/load was filled twice"):
        context.at("decoder").at("router").emit("load", 7)


def test_a_repeat_collects_side_results_of_its_own():
    outer = Context(ROWS)
    inner = outer.for_layer(0)
    inner.at("mlp").emit("peak", 1)
    assert outer.sinks == {}
    outer.collect(inner.sinks, inner.kept)
    assert outer.sinks == {"mlp/peak": 1}
    with pytest.raises(AssertionError):
        outer.collect(inner.sinks, inner.kept)


def test_a_weight_is_cast_for_use():
    weight = CONTEXT.weight(jnp.ones((2, 3)), ("embed", "mlp"), dtype="bfloat16")
    assert weight.dtype == jnp.bfloat16
