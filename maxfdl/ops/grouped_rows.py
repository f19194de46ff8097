"""Rows in the order of their groups, times the kernels of these, and gradients.

Only tiles of rows that groups hold are computed, however many rows follow them, and a
row meets the kernel of its group alone. Letters: M rows, D contracted, F outputs, E
groups.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Num

from maxfdl.ops.cost import expect_flops

Implementation = Literal["auto", "ragged", "blocks"]
"""`ragged`: `jax.lax.ragged_dot`. `blocks`: a loop over 64 rows at a time. `auto`: what
`GroupedDot.resolve` says."""


def rows_by_kernels(
    x_MD: Num[Array, "M D"],
    kernel_EDF: Num[Array, "E D F"],
    sizes_E: Int[Array, " E"],
    implementation: Implementation,
    dtype: DTypeLike,
    expected: int | None = None,
) -> Num[Array, "M F"]:
    """Returns each row times the kernel of its group, without a rule for gradients.

    Args:
      x_MD: Rows in the order of their groups. Those that follow are in none: 0 comes
        of them.
      kernel_EDF: A kernel for each group.
      sizes_E: How many rows each group has.
      implementation: As in `GroupedDot`; `auto` is resolved already.
      dtype: Type of the sums and of the result.
      expected: Rows that groups are expected to have, which FLOPs are counted by; None:
        M.
    """

    def ragged(x_MD, kernel_EDF, sizes_E):
        y_MF = lax.ragged_dot(x_MD, kernel_EDF, sizes_E, preferred_element_type=dtype)
        # A kernel for TPUs may leave these rows as the memory was.
        is_full = jnp.arange(y_MF.shape[0]) < jnp.sum(sizes_E)
        return jnp.where(is_full[:, None], y_MF, jnp.zeros_like(y_MF))

    def blocks(x_MD, kernel_EDF, sizes_E):
        return _by_blocks(x_MD, kernel_EDF, sizes_E, dtype)

    product = {"ragged": ragged, "blocks": blocks}[implementation]
    flops = _flops(x_MD, kernel_EDF.shape[2], expected)
    return expect_flops(product, flops)(x_MD, kernel_EDF, sizes_E)


def kernels_of_rows(
    x_MD: Num[Array, "M D"],
    dy_MF: Num[Array, "M F"],
    sizes_E: Int[Array, " E"],
    implementation: Implementation,
    dtype: DTypeLike,
    expected: int | None = None,
) -> Num[Array, "E D F"]:
    """Returns, for each group, the sum of `x^T dy` over its rows: a kernel's gradient.

    The arguments are those of `rows_by_kernels`, with the gradient of its result. Sums
    are in float32, of integers in `dtype`, which is the type of the result.
    """

    in_integers = jnp.issubdtype(dtype, jnp.integer)
    of_sums = dtype if in_integers else jnp.float32

    def whole(x_MD, dy_MF, sizes_E):
        sums_EDF = lax.ragged_dot_general(
            x_MD, dy_MF, sizes_E, _OVER_ROWS, preferred_element_type=of_sums
        )
        return sums_EDF.astype(dtype)

    def tiles(x_MD, dy_MF, sizes_E):
        return _kernels_by_tiles(x_MD, dy_MF, sizes_E, dtype)

    def ragged(*args):
        if x_MD.dtype.itemsize == 1:  # the kernel would not use the units for 8 bits
            return whole(*args)
        return lax.platform_dependent(*args, tpu=tiles, default=whole)

    def blocks(x_MD, dy_MF, sizes_E):
        return _kernels_by_blocks(x_MD, dy_MF, sizes_E, of_sums).astype(dtype)

    product = {"ragged": ragged, "blocks": blocks}[implementation]
    flops = _flops(x_MD, dy_MF.shape[1], expected)
    return expect_flops(product, flops)(x_MD, dy_MF, sizes_E)


def _flops(x_MD: jax.Array, outputs: int, expected: int | None) -> int:
    rows, width = x_MD.shape
    return 2 * (rows if expected is None else min(expected, rows)) * width * outputs


_OVER_ROWS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)

_TILE = 512
"""Rows, inputs and outputs of one step of the kernel for TPUs. In on-chip memory it
needs 6 MiB, and it does 256 FLOPs for each byte that it reads."""


def _kernels_by_tiles(x_MD, dy_MF, sizes_E, dtype, interpret=False):
    """The gradient of the kernels, by the kernel for TPUs that comes with JAX.

    XLA for TPUs would multiply all rows once for each group, with zeros in place of
    those of other groups: E times the FLOPs.
    """
    x_MD, dy_MF = map(_as_multiplied, (x_MD, dy_MF))
    rows = x_MD.shape[0]
    tile = next((n for n in (_TILE, 256, 128) if rows % n == 0), min(rows, _TILE))
    added = -rows % tile
    x_MD, dy_MF = (jnp.pad(a, ((0, added), (0, 0))) for a in (x_MD, dy_MF))
    tiling = tile, min(x_MD.shape[1], _TILE), min(dy_MF.shape[1], _TILE)
    given = dtype if dtype in _OF_KERNEL else jnp.float32
    sums_EDF = tgmm(x_MD.T, dy_MF, sizes_E, given, tiling=tiling, interpret=interpret)
    return sums_EDF.astype(dtype)


_OF_KERNEL = jnp.bfloat16, jnp.float32
"""The types that the kernel for TPUs knows."""


def _as_multiplied(a: jax.Array) -> jax.Array:
    """Returns the numbers in a type that the kernel for TPUs knows, unrounded."""
    return a if a.dtype in _OF_KERNEL else a.astype(jnp.float32)


_ROWS = 64
"""Rows of one block; 32 to 128 are within a fifth of each other."""


def _by_blocks(x_MD, kernel_EDF, sizes_E, dtype):
    """Blocks of rows, each times the kernel of the group that it begins in."""

    def product(x, group):
        return lax.dot(x, kernel_EDF[group], preferred_element_type=dtype)

    return each_block(x_MD, sizes_E, product, kernel_EDF.shape[-1], dtype)


def each_block(x_MD, sizes_E, product, outputs, dtype):
    """Returns `product(rows, group)` of each block of rows.

    The last block of a group reaches into the next, which overwrites what is too much.
    """
    blocks = _Blocks(sizes_E, x_MD.shape[0])
    x_MD = blocks.padded(x_MD)

    def body(i, y_MF):
        group, start = blocks.at(i)
        y = product(blocks.cut(x_MD, start), group)
        return lax.dynamic_update_slice(y_MF, y, (start, 0))

    y_MF = jnp.zeros((x_MD.shape[0], outputs), dtype)
    return blocks.unpadded(lax.fori_loop(0, blocks.number, body, y_MF))


def _kernels_by_blocks(x_MD, dy_MF, sizes_E, dtype):
    """The gradient of the kernels, added up block by block in `dtype`."""
    blocks = _Blocks(sizes_E, x_MD.shape[0])
    x_MD, dy_MF = blocks.padded(x_MD), blocks.padded(dy_MF)

    def body(i, dkernel_EDF):
        group, start = blocks.at(i)
        x = blocks.cut(x_MD, start)
        x = jnp.where(blocks.own(group, start), x, jnp.zeros_like(x))
        dy = blocks.cut(dy_MF, start)
        dkernel = lax.dot(x.T, dy, preferred_element_type=dtype)
        return dkernel_EDF.at[group].add(dkernel)

    shape = (sizes_E.size, x_MD.shape[1], dy_MF.shape[1])
    return lax.fori_loop(0, blocks.number, body, jnp.zeros(shape, dtype))


class _Blocks:
    """Where the blocks of each group of rows begin."""

    def __init__(self, sizes_E: jax.Array, rows: int):
        self._rows = rows
        self.size = min(_ROWS, rows)
        self._per_group = (sizes_E + self.size - 1) // self.size
        self._ends = jnp.cumsum(self._per_group)
        self._last_row = jnp.cumsum(sizes_E)
        self._first_row = self._last_row - sizes_E
        self.number = self._ends[-1]

    def at(self, i):
        """Returns the group of block `i` and its first row."""
        group = jnp.searchsorted(self._ends, i, side="right")
        of_group = i - (self._ends[group] - self._per_group[group])
        return group, self._first_row[group] + of_group * self.size

    def own(self, group, start):
        """Returns which rows of a block are of its group, [rows, 1]."""
        return (start + jnp.arange(self.size) < self._last_row[group])[:, None]

    def cut(self, x, start):
        return lax.dynamic_slice(x, (start, 0), (self.size, x.shape[1]))

    def padded(self, x):
        return jnp.pad(x, ((0, self.size), (0, 0)))

    def unpadded(self, x):
        return x[: self._rows]
