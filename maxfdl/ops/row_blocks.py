"""Arrays cut in blocks, of which the last is filled up with zeros."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from maxfdl.ops.contraction import Contraction, GroupedContraction, Name


def padded(a: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns `a` with zeros after it, so that each dim has whole blocks."""
    pads = [(0, -dim % size) for dim, size in zip(a.shape, sizes, strict=True)]
    return jnp.pad(a, pads) if any(after for _, after in pads) else a


def row_blocks(
    product: Contraction, name: Name, a: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Returns rows in blocks [N, size, width] of one group each, and the groups [N].

    Rows that fill up a block are 0. On a mesh each device has blocks of its own rows.

    Args:
      product: The product, whose groups count.
      name: Which of its arrays the rows are.
      a: The rows.
      size: Rows of a block.
    """
    if not isinstance(product, GroupedContraction):
        a = padded(a, (1, size, 1))
        groups, rows, width = a.shape
        group = jnp.repeat(jnp.arange(groups), rows // size)
        return a.reshape(-1, size, width), group

    def number(group, sizes):
        rows, groups = group.size, sizes.size
        return -(-rows // size) + min(groups, rows)  # enough for the last of each group

    def blocks_of(a, group, sizes):
        blocks = -(-sizes // size)
        begin = (jnp.cumsum(blocks) - blocks) * size - (jnp.cumsum(sizes) - sizes)
        row, places = jnp.arange(group.size), number(group, sizes) * size
        place = jnp.where(row < jnp.sum(sizes), row + begin[group], places)
        filled = jnp.zeros((places, a.shape[1]), a.dtype).at[place].set(a)
        return filled.reshape(-1, size, a.shape[1])

    def groups_of(group, sizes):
        ends = jnp.cumsum(-(-sizes // size))
        block = jnp.arange(number(group, sizes))
        found = jnp.searchsorted(ends, block, side="right")
        return jnp.minimum(found, sizes.size - 1)

    rows, width = product.letters(name)
    rows_in_blocks = product.on_each(blocks_of, (rows + width, "m", "m"), f"m.{width}")
    group_N = product.on_each(groups_of, ("m", "m"), "m")(product.group, product.sizes)
    return rows_in_blocks(a, product.group, product.sizes), group_N
