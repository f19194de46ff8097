"""Stochastic rounding to narrower float types."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


def stochastically_rounded(
    x: Float[Array, "*dims"], dtype: DTypeLike, key: Key[Array, "*keys"]
) -> Float[Array, "*dims"]:
    """Rounds each number to one of its two neighbours in `dtype`, so that the mean of
    many roundings is the number itself.

    Where the neighbour further from 0 is a share `p` of their distance away from the
    other, it is taken with probability `1 - p` exactly, for float32 numbers above the
    smallest normal number of `dtype`; below it, to one part in 2^13. Numbers that
    `dtype` has are kept, and so are NaN and infinities. Beyond its greatest number the
    result is that number or infinity.

    Addition in a narrow type loses what is below half the distance of its numbers.
    Rounded so, the sum of many small changes is right in the mean (Gupta et al. 2015,
    https://arxiv.org/abs/1502.02551).

    Args:
      x: float32. Other types are converted to it.
      dtype: A type with at most 32 bits.
      key: For all of x, or one for each of its leading dim, so that what is drawn for
        a part does not depend on where x is cut.
    """
    x = x.astype(jnp.float32)
    dropped = jnp.finfo(jnp.float32).nmant - jnp.finfo(dtype).nmant
    if dropped <= 0:
        return x.astype(dtype)
    # Numbers below the smallest normal one are as far apart as the next ones above it:
    # moved up there, they have the same bits to drop.
    least = jnp.float32(jnp.finfo(dtype).smallest_normal)
    moved = jnp.where(jnp.abs(x) < least, jnp.copysign(least, x), 0.0)
    bits = jax.lax.bitcast_convert_type(x + moved, jnp.uint32)
    mask = jnp.uint32(2**dropped - 1)
    bits = (bits + (_random(key, x) & mask)) & ~mask
    rounded = jax.lax.bitcast_convert_type(bits, jnp.float32) - moved
    return jnp.where(jnp.isfinite(x) & (x != 0.0), rounded, x).astype(dtype)


def _random(key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns 16 random bits for each number of x, as uint32."""
    if key.ndim:
        return jax.vmap(_random)(key, x)
    return jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
