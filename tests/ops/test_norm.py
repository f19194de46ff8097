"""rms_norm against its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.norm import rms_norm


def numpy_rms_norm(x, scale, epsilon):
    x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 16)) * 10.0 ** rng.integers(-3, 3, (3, 5, 1))
    return jnp.float32(x), jnp.float32(rng.normal(size=16))


@pytest.mark.parametrize("epsilon", [1e-6, 1e-5, 1e-2])
def test_follows_the_formula(values, epsilon):
    x, scale = values
    expected = numpy_rms_norm(x, scale, epsilon)
    np.testing.assert_allclose(rms_norm(x, scale, epsilon), expected, rtol=1e-6)


def test_takes_statistics_in_float32_and_answers_in_the_type_of_its_input(values):
    x, scale = values
    x = x.astype(jnp.bfloat16)
    y = rms_norm(x, scale, 1e-5)
    assert y.dtype == jnp.bfloat16
    # One rounding of the normed value, one of the scale, one of their product.
    expected = numpy_rms_norm(x, scale, 1e-5)
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=3 * 2.0**-8)


def test_leaves_zeros_zero():
    y = rms_norm(jnp.zeros((2, 4)), jnp.ones(4), 1e-5)
    assert not np.any(y)


def test_size_of_the_input_does_not_matter(values):
    x, scale = values
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        rms_norm(x * 1e3, scale, 0.0), rms_norm(x, scale, 0.0), rtol=2e-6
    )
