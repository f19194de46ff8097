"""Initializers against the moments they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.initializers import Constant, FanIn, Normal

KEY = jax.random.key(0)
SHAPE = (200, 300)


@pytest.mark.parametrize(
    ("init", "stddev"),
    [(Normal(0.02), 0.02), (FanIn(), 0.1), (FanIn(scale=2.0), 0.2)],
)
def test_draws_around_zero_with_the_deviation_it_names(init, stddev):
    values = init(KEY, SHAPE, fan_in=100)
    assert values.shape == SHAPE and values.dtype == jnp.float32
    assert float(jnp.std(values)) == pytest.approx(stddev, rel=0.02)
    assert abs(float(jnp.mean(values))) < 0.02 * stddev


def test_a_constant_is_constant():
    np.testing.assert_array_equal(Constant(1.5)(KEY, (2, 3), 0), np.full((2, 3), 1.5))


def test_the_same_key_draws_the_same():
    same = Normal()(KEY, SHAPE, 1) == Normal()(KEY, SHAPE, 1)
    other = Normal()(KEY, SHAPE, 1) == Normal()(jax.random.key(1), SHAPE, 1)
    assert same.all() and not other.all()
