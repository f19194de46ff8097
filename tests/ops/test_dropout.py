"""Dropout keeps the mean and follows from its key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.dropout import dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_zeroes_its_share_and_keeps_the_mean(rate):
    x = jnp.full((100_000,), 3.0)
    y = dropout(x, rate, KEY)
    share = rate * (1 - rate) / x.size
    assert float(jnp.mean(y == 0)) == pytest.approx(rate, abs=5 * share**0.5)
    assert float(jnp.mean(y)) == pytest.approx(3.0, rel=5 * share**0.5 / (1 - rate))


def test_what_stays_grows_by_the_same_factor():
    y = dropout(jnp.arange(1.0, 100.0), 0.25, KEY)
    kept = y != 0
    np.testing.assert_allclose(y[kept], jnp.arange(1.0, 100.0)[kept] / 0.75)


def test_the_same_key_drops_the_same():
    x = jnp.ones(1000)
    np.testing.assert_array_equal(dropout(x, 0.5, KEY), dropout(x, 0.5, KEY))
    assert np.any(dropout(x, 0.5, KEY) != dropout(x, 0.5, jax.random.key(1)))


def test_keeps_the_type():
    assert dropout(jnp.ones(8, jnp.bfloat16), 0.5, KEY).dtype == jnp.bfloat16


def test_gradients_flow_through_what_stays_alone():
    y, grad = dropout(jnp.ones(50), 0.5, KEY), None
    grad = jax.grad(lambda x: jnp.sum(dropout(x, 0.5, KEY)))(jnp.ones(50))
    np.testing.assert_array_equal(grad, y)
