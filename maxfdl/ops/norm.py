"""Normalisation of the last dim. Statistics are float32."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"] | None, epsilon: float
) -> Float[Array, "... D"]:
    """Root-mean-square norm: `x / sqrt(mean(x^2) + epsilon) * scale`.

    The result is in the type of `x`, as in Zhang & Sennrich 2019,
    https://arxiv.org/abs/1910.07467, and LLaMA's own code. Without a scale the result
    has unit mean square.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normed = (x32 * lax.rsqrt(mean_square + epsilon)).astype(x.dtype)
    return normed if scale is None else normed * scale.astype(x.dtype)


def zero_centred_rms_norm(
    x: Float[Array, "... D"], offset: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """Root-mean-square norm with scale `1 + offset`, applied in float32: Gemma's."""
    scale = 1.0 + offset.astype(jnp.float32)
    return rms_norm(x.astype(jnp.float32), scale, epsilon).astype(x.dtype)


def layer_norm(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    epsilon: float,
) -> Float[Array, "... D"]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias`.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    normed = centred * lax.rsqrt(variance + epsilon) * scale.astype(jnp.float32)
    if bias is not None:
        normed = normed + bias.astype(jnp.float32)
    return normed.astype(x.dtype)


def zero_centred_layer_norm(
    x: Float[Array, "... D"],
    offset: Float[Array, " D"],
    bias: Float[Array, " D"],
    epsilon: float,
) -> Float[Array, "... D"]:
    """`layer_norm` with scale `1 + offset`: that of GPT-3 in Paxml and MaxText."""
    return layer_norm(x, 1.0 + offset.astype(jnp.float32), bias, epsilon)
