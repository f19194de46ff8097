"""The gated norm against its formula in float64."""

import jax.numpy as jnp
import numpy as np

from maxfdl.ops.gated_norm import gated_rms_norm


def test_norms_first_and_gates_then():
    x, gate = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
    scale = np.linspace(0.5, 2.0, 8)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-2) * scale
    expected = normed * gate / (1 + np.exp(-gate))
    actual = gated_rms_norm(*map(jnp.float32, (x, gate, scale)), 1e-2)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_the_gate_is_float32_and_the_result_in_the_type_of_x():
    x, gate = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
    x, gate, scale = jnp.bfloat16(x), jnp.float32(gate), jnp.ones(8)
    out = gated_rms_norm(x, gate, scale, 1e-6)
    assert out.dtype == jnp.bfloat16
    assert np.any(out != gated_rms_norm(x, gate.astype(x.dtype) * 1.01, scale, 1e-6))
