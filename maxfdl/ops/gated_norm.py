"""Normalisation whose result another vector gates."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.norm import rms_norm


def gated_rms_norm(
    x: Float[Array, "... D"],
    gate: Float[Array, "... D"],
    scale: Float[Array, " D"],
    epsilon: float,
) -> Float[Array, "... D"]:
    """`rms_norm(x) * silu(gate)`: normed first, then gated in float32.

    As in Yang et al. 2024, https://arxiv.org/abs/2412.06464; Mamba 2 gates first.
    """
    normed = rms_norm(x, scale, epsilon).astype(jnp.float32)
    return (normed * jax.nn.silu(gate.astype(jnp.float32))).astype(x.dtype)
