"""Activations against their definitions."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.activation import activate

X = np.linspace(-6, 6, 101)
CUBIC = math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)
EXPECTED = {
    "silu": X / (1 + np.exp(-X)),
    "gelu": [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in X],
    "gelu_tanh": X * (1 + np.tanh(CUBIC)) / 2,
    "relu": np.maximum(X, 0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_is_what_its_name_says(name):
    np.testing.assert_allclose(
        activate(name, jnp.float32(X)), EXPECTED[name], atol=3e-6
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_keeps_the_type(name):
    assert activate(name, jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
