"""What layers are told about a call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.context import Context

KEY = jax.random.key(0)
CONTEXT = Context(positions=jnp.zeros((1, 1), jnp.int32), key=KEY)


def same(one, other):
    return np.array_equal(jax.random.key_data(one), jax.random.key_data(other))


def test_a_place_has_one_key_whoever_asks_first():
    one = CONTEXT.at("mlp").at("dropout").layer_key()
    CONTEXT.at("attention").layer_key()
    assert same(one, CONTEXT.at("mlp").at("dropout").layer_key())


def test_places_repeats_and_steps_have_different_keys():
    at = CONTEXT.at("dropout")
    keys = [
        at.layer_key(),
        CONTEXT.at("other").layer_key(),
        at.for_layer(0).layer_key(),
        at.for_layer(1).layer_key(),
        Context(at.positions, key=jax.random.key(1)).at("dropout").layer_key(),
    ]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_without_a_key_repeats_have_none():
    assert Context(CONTEXT.positions).for_layer(3).key is None


def test_side_results_lie_under_the_path_of_the_layer():
    context = Context(CONTEXT.positions)
    context.at("decoder").at("router").emit("load", 7)
    assert context.sinks == {"decoder/router/load": 7}
    with pytest.raises(AssertionError, match="decoder/router/load was filled twice"):
        context.at("decoder").at("router").emit("load", 7)


def test_a_repeat_collects_side_results_of_its_own():
    outer = Context(CONTEXT.positions)
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
