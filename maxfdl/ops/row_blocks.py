"""Arrays cut in blocks, of which the last is filled up with zeros."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxfdl.ops.contraction import Contraction, GroupedContraction


def padded(a: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns `a` with zeros after it, so that each dim has whole blocks."""
    pads = [(0, -dim % size) for dim, size in zip(a.shape, sizes, strict=True)]
    return jnp.pad(a, pads) if any(after for _, after in pads) else a


def row_blocks(
    product: Contraction, a: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns rows in blocks [N, size, width] of one group each, and the groups [N].

    Rows that fill up a block are 0.
    """
    if not isinstance(product, GroupedContraction):
        a = padded(a, (1, size, 1))
        groups, rows, width = a.shape
        group = jnp.repeat(jnp.arange(groups), rows // size)
        return a.reshape(-1, size, width), group
    rows, groups = a.shape[0], product.sizes.size
    number = -(-rows // size) + min(groups, rows)  # enough for the last of each group
    blocks = -(-product.sizes // size)
    ends = jnp.cumsum(blocks)
    begin = (ends - blocks) * size - (jnp.cumsum(product.sizes) - product.sizes)
    place = jnp.arange(rows) + begin[product.group]
    filled = jnp.zeros((number * size, a.shape[1]), a.dtype).at[place].set(a)
    group = jnp.searchsorted(ends, jnp.arange(number), side="right")
    return filled.reshape(number, size, -1), jnp.minimum(group, groups - 1)
