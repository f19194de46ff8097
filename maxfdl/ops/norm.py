"""Normalisation of the last dim."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Root-mean-square norm: `x / sqrt(mean(x^2) + epsilon) * scale`.

    Statistics are float32 and the result is in the type of `x`, as in Zhang &
    Sennrich 2019, https://arxiv.org/abs/1910.07467, and LLaMA's own code.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normed = (x32 * lax.rsqrt(mean_square + epsilon)).astype(x.dtype)
    return normed * scale.astype(x.dtype)
