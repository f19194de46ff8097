"""Blocks of numbers that share one scale, in arrays that a mesh may cut.

The scales have the dims of the array, each divided by the side of a block along it. A
mesh that cuts a dim of the array cuts the scales there, too, if it cuts no block.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LONGEST_AT_FIRST, _ENOUGH = 16, 4


def block_sides(
    shape: Sequence[int], shared: Sequence[int], size: int
) -> tuple[int, ...]:
    """Returns the sides of blocks of `size` numbers, or of fewer in a small array.

    Long dims get sides of up to 16 before any gets a longer one, and of powers of two
    that divide them, so that a dim can be cut into as many equal parts as possible
    without cutting a block. Only where that makes blocks of less than a quarter of
    `size`, sides are longer, and a last block may be shorter.

    Args:
      shape: Of the array.
      shared: Dims along which numbers share a scale.
      size: A power of two.
    """
    sides = [1] * len(shape)
    longest_first = sorted(shared, key=lambda dim: -shape[dim])
    for longest in (_LONGEST_AT_FIRST, size):
        for dim in longest_first:
            power = shape[dim] & -shape[dim]  # the greatest that divides it
            room = size // math.prod(sides) * sides[dim]
            sides[dim] = max(sides[dim], min(power, longest, room))
    for dim in longest_first:
        room = size // math.prod(sides)
        if room > _ENOUGH:
            sides[dim] = min(shape[dim], room * sides[dim])
    return tuple(sides)


def greatest_of_blocks(
    x: Float[Array, "*dims"], sides: Sequence[int]
) -> Float[Array, "*blocks"]:
    """Returns the greatest magnitude in each block; infinity where one has a NaN."""
    # XLA's maximum may leave NaN out.
    x = jnp.where(jnp.isnan(x), jnp.inf, jnp.abs(x))
    for dim, side in enumerate(sides):
        if side > 1:
            x = jnp.max(_cut(x, dim, side), axis=dim + 1)
    return x


def over_blocks(
    scales: Float[Array, "*blocks"], sides: Sequence[int], shape: Sequence[int]
) -> Float[Array, "*dims"]:
    """Returns the scale of each number of an array of that shape."""
    for dim, side in reversed([*enumerate(sides)]):
        if side > 1:
            scales = jnp.repeat(scales, side, axis=dim)
            scales = jax.lax.slice_in_dim(scales, 0, shape[dim], axis=dim)
    return scales


def _cut(x: jax.Array, dim: int, side: int) -> jax.Array:
    """Returns x with a dim cut into two: blocks, and the numbers of one of them."""
    blocks = -(-x.shape[dim] // side)
    missing = blocks * side - x.shape[dim]
    padding = [(0, missing if d == dim else 0) for d in range(x.ndim)]
    x = jnp.pad(x, padding) if missing else x
    return x.reshape(*x.shape[:dim], blocks, side, *x.shape[dim + 1 :])
