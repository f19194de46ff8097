"""The gated norm against its formula in float64."""

import jax.numpy as jnp
import numpy as np

from maxfdl.ops.gated_norm import gated_rms_norm
from maxfdl.ops.norm import rms_norm


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
    normed = np.float64(rms_norm(x, scale, 1e-6))
    expected = normed * gate / (1 + np.exp(-np.float64(gate)))
    # One rounding, at the end: bfloat16 has 8 binary digits. A gate that was rounded
    # too is further off.
    np.testing.assert_allclose(np.float64(out), expected, rtol=1.001 * 2**-8)
    rounded = gated_rms_norm(x, gate.astype(x.dtype), scale, 1e-6)
    assert np.max(np.abs(np.float64(rounded) / expected - 1)) > 1.001 * 2**-8
