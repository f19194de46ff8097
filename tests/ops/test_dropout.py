"""Dropout keeps the mean and follows from its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.dropout import dropout

KEY = jax.random.key(0)


def row_keys(rows, key=KEY):
    return jax.random.split(key, rows)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_zeroes_its_share_and_keeps_the_mean(rate):
    x = jnp.full((100, 1000), 3.0)
    y = dropout(x, rate, row_keys(100))
    share = rate * (1 - rate) / x.size
    assert float(jnp.mean(y == 0)) == pytest.approx(rate, abs=5 * share**0.5)
    assert float(jnp.mean(y)) == pytest.approx(3.0, rel=5 * share**0.5 / (1 - rate))


def test_what_stays_grows_by_the_same_factor():
    x = jnp.arange(1.0, 100.0)[None]
    y = dropout(x, 0.25, row_keys(1))
    kept = y != 0
    np.testing.assert_allclose(y[kept], x[kept] / 0.75)


def test_the_same_key_drops_the_same():
    x, keys = jnp.ones((2, 1000)), row_keys(2)
    y = dropout(x, 0.5, keys)
    np.testing.assert_array_equal(y, dropout(x, 0.5, keys))
    assert np.any(y[0] != y[1])
    np.testing.assert_array_equal(y[1:], dropout(x[1:], 0.5, keys[1:]))


def test_keeps_the_type():
    assert (
        dropout(jnp.ones((2, 8), jnp.bfloat16), 0.5, row_keys(2)).dtype == jnp.bfloat16
    )


def test_gradients_flow_through_what_stays_alone():
    x, keys = jnp.ones((2, 50)), row_keys(2)
    y = dropout(x, 0.5, keys)
    grad = jax.grad(lambda x: jnp.sum(dropout(x, 0.5, keys)))(x)
    np.testing.assert_array_equal(grad, y)
