"""Rounding by hash is right on average, and the same however it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.hashed_rounding import round_by_hash
from maxfdl.ops.int8 import Int8
from maxfdl.ops.quantized_dot import QuantizedDot
from tests.ops.test_quantized_dot import random

round_ = jax.jit(round_by_hash)


@pytest.mark.parametrize("x", [-126.75, -0.3, 0.0, 1e-3, 0.5, 126.999])
def test_the_mean_of_equal_numbers_is_the_number(x):
    places = jnp.arange(2**16)
    rounded = round_(jnp.float32(x), jnp.float32(0.1), places)
    assert set(np.unique(rounded)) <= {np.floor(x), np.ceil(x)}
    np.testing.assert_allclose(np.mean(rounded), x, atol=3 * 0.5 / 2**8)


def test_equal_numbers_are_told_apart_by_salt_and_neighbours_by_themselves():
    salt = jnp.linspace(0.1, 0.2, 2**14)
    for x, by in ((jnp.full(2**14, 0.25), salt), (0.25 + salt * 0.1, jnp.ones(1))):
        ups = round_(x, by, jnp.zeros(1, jnp.int32))
        np.testing.assert_allclose(np.mean(ups), np.mean(x), atol=0.015)
        # Neighbours do not go together.
        assert abs(np.corrcoef(ups[1:], ups[:-1])[0, 1]) < 0.03


def test_greatest_numbers_stay():
    x = jnp.full(2**14, 127.0)
    np.testing.assert_array_equal(round_(x, x, jnp.arange(2**14)), x)
    np.testing.assert_array_equal(round_(-x, x, jnp.arange(2**14)), -x)


def test_gradients_of_activations_do_not_depend_on_how_a_batch_is_cut():
    x, kernel, dy = random(8, 16), random(16, 12, seed=1), random(8, 12, seed=2)

    @jax.jit
    def dx(x, dy):
        dot = QuantizedDot(Int8(backward=True, rounding="stochastic"))
        _, pull = jax.vjp(lambda x: dot(x, jnp.asarray(kernel), {})[0], x)
        return pull(dy)[0]

    whole = dx(x, dy)
    parts = [dx(x[i : i + 4], dy[i : i + 4]) for i in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_mean_of_rounded_gradients_is_the_gradient():
    x, kernel = np.ones((2**12, 1), np.float32), np.ones((1, 2), np.float32)
    # A great number sets the scale; the other is .3 of a step, and rounds to 0.
    dy = np.stack([np.full(2**12, 127.0), 0.3 * np.linspace(0.9, 1.1, 2**12)], 1)
    means = {}
    for rounding in ("nearest", "stochastic"):
        dot = QuantizedDot(Int8(backward=True, rounding=rounding))

        @jax.jit
        def dx(x, dy, dot=dot):
            _, pull = jax.vjp(lambda x: dot(x, jnp.asarray(kernel), {})[0], x)
            return pull(dy)[0]

        means[rounding] = np.mean(dx(x, np.float32(dy))) - 127
    assert means["nearest"] == pytest.approx(0, abs=1e-3)
    assert means["stochastic"] == pytest.approx(0.3, abs=0.03)
