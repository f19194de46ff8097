"""Stochastic rounding that needs no key: it draws from a hash of what it rounds."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def round_by_hash(
    x: Float[Array, "..."], salt: Float[Array, "..."], places: Int[Array, "..."]
) -> Float[Array, "..."]:
    """Returns `floor(x + u)`: the integer above x as often as x is near to it.

    `u` is uniform in [0, 1), from a hash of the bits of `x` and `salt`, and of the
    place. So equal calls round equally: a step that is run again, recomputed by remat,
    scanned or unrolled, or a part of a batch that lies on another device. Numbers that
    differ round independently of each other.

    Args:
      x: Numbers, of magnitudes up to 127.
      salt: Further numbers that tell apart equal `x`, such as the scales of rows.
      places: Integers that tell apart equal numbers with equal salt.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    bits = _mixed(bits ^ _mixed(lax.bitcast_convert_type(salt, jnp.uint32)))
    bits = _mixed(bits ^ places.astype(jnp.uint32))
    # 16 bits, so that the sum below is exact enough not to reach the next integer.
    uniform = ((bits >> 16).astype(jnp.float32) + 0.5) * 2.0**-16
    return jnp.floor(x + uniform)


def _mixed(bits: jax.Array) -> jax.Array:
    """Returns a permutation of 32-bit numbers in which each bit depends on all.

    The multipliers are those of MurmurHash3's last step.
    """
    bits = bits + jnp.uint32(0x9E3779B9)  # without it, 0 would stay 0
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
