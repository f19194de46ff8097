"""Products of groups of rows with a kernel each, as a leaf op.

A quantised product is another `GroupedProduct` in the same field. Letters: M rows, D
contracted, F outputs, E groups.
"""

import abc
import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from maxfdl.markers import Operational
from maxfdl.ops.codec import PackedKernel
from maxfdl.ops.cost import declare_flops
from maxfdl.ops.gather import GroupGather
from maxfdl.ops.packed_product import is_read_packed, rows_by_packed
from maxfdl.ops.product import Product, State
from maxfdl.ops.target import target_platform

Implementation = Literal["auto", "ragged", "blocks"]


class GroupedProduct(Product):
    """Multiplies rows by the kernel of their group, as a `MatrixProduct` does."""

    def gathers_kernel(self) -> bool:
        """Says whether it is given shards of the kernels, see `MatrixProduct`."""
        return True

    @abc.abstractmethod
    def __call__(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: Float[Array, "E _ _"],
        state: State,
        sizes_E: Int[Array, " S"] | None,
        gather: GroupGather | None = None,
    ) -> tuple[Float[Array, "M _"], State]:
        """Multiplies rows that lie in the order of their groups.

        Args:
          x_MD: The rows.
          kernel_EDF: A kernel for each group, or the shards of them that lie here.
          state: A value for each name that was declared.
          sizes_E: How many rows each group has, M in all at most. None: equally many.
            On a mesh, each device has rows of its own, for all groups or some: this
            has their sizes, one device after the other.
          gather: What gathers shards of the kernels, and runs a function on each
            device of a mesh; None on a single device.

        Returns:
          The product, in the type of the rows, and what is new of the state.
        """


@dataclasses.dataclass(frozen=True)
class GroupedDot(GroupedProduct):
    """Each row times the kernel of its group, in the type of `x`.

    Cost: `2 M D F` FLOPs forward, three times that with gradients.

    Args:
      implementation: For groups of unequal size. `ragged` is `jax.lax.ragged_dot`,
        `blocks` a loop over 64 rows at a time. XLA:CPU computes the first as E whole
        products, see `resolve`.
    """

    is_plain = True

    implementation: Annotated[Implementation, Operational] = "auto"

    def resolve(self, platform: str | None = None) -> Implementation:
        """Returns what `auto` means on `platform` (default: what is traced for)."""
        if self.implementation != "auto":
            return self.implementation
        platform = platform or target_platform()
        return "blocks" if platform == "cpu" else "ragged"

    def __call__(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: Float[Array, "E _ _"],
        state: State,
        sizes_E: Int[Array, " S"] | None,
        gather: GroupGather | None = None,
    ) -> tuple[Float[Array, "M _"], State]:
        kernel_EDF = kernel_EDF.astype(x_MD.dtype)
        if gather is not None and sizes_E is not None:
            chosen = self.resolve()
            kernel_EDF = _gathered(gather, kernel_EDF)
            return jnp.asarray(_on_mesh(gather, chosen, x_MD, kernel_EDF, sizes_E)), {}
        rows, width = x_MD.shape
        groups, _, outputs = kernel_EDF.shape
        if sizes_E is None:
            x_EMD = x_MD.reshape(groups, rows // groups, width)
            y_EMF = jnp.einsum("emd,edf->emf", x_EMD, kernel_EDF)
            return y_EMF.reshape(rows, outputs), {}
        product = {"ragged": lax.ragged_dot, "blocks": _blocks}[self.resolve()]
        flops = 2 * rows * width * outputs
        return declare_flops(product, flops)(x_MD, kernel_EDF, sizes_E), {}

    def of_packed(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: PackedKernel,
        state: State,
        sizes_E: Int[Array, " E"] | None,
    ) -> tuple[Float[Array, "M F"], State]:
        rows, codec = x_MD.shape[0], kernel_EDF.codec
        in_blocks = self.resolve() == "blocks" and sizes_E is not None
        if in_blocks and is_read_packed(rows, codec):
            return _packed_blocks(x_MD, kernel_EDF, sizes_E), {}
        return super().of_packed(x_MD, kernel_EDF, state, sizes_E)


_ROWS = 64  # of one block; 32 to 128 are within a fifth of each other


def rows_by_kernels(
    x_MD: Num[Array, "M D"],
    kernel_EDF: Num[Array, "E D F"],
    sizes_E: Int[Array, " E"],
    implementation: Implementation,
    dtype: DTypeLike,
) -> Num[Array, "M F"]:
    """Returns each row times the kernel of its group, without a rule for gradients.

    Args:
      x_MD: Rows in the order of their groups. Those that follow are in none: 0 comes
        of them.
      kernel_EDF: A kernel for each group.
      sizes_E: How many rows each group has.
      implementation: As in `GroupedDot`; `auto` is resolved already.
      dtype: Type of the sums and of the result.
    """
    if implementation == "blocks":
        return _by_blocks(x_MD, kernel_EDF, sizes_E, dtype)
    y_MF = lax.ragged_dot(x_MD, kernel_EDF, sizes_E, preferred_element_type=dtype)
    # A kernel for TPUs may leave these rows as the memory was.
    is_full = jnp.arange(y_MF.shape[0]) < jnp.sum(sizes_E)
    return jnp.where(is_full[:, None], y_MF, jnp.zeros_like(y_MF))


def kernels_of_rows(
    x_MD: Num[Array, "M D"],
    dy_MF: Num[Array, "M F"],
    sizes_E: Int[Array, " E"],
    implementation: Implementation,
    dtype: DTypeLike,
) -> Num[Array, "E D F"]:
    """Returns, for each group, the sum of `x^T dy` over its rows: a kernel's gradient.

    The arguments are those of `rows_by_kernels`, with the gradient of its result.
    """
    if implementation == "ragged":
        return lax.ragged_dot_general(
            x_MD, dy_MF, sizes_E, _OVER_ROWS, preferred_element_type=dtype
        )
    return _kernels_by_blocks(x_MD, dy_MF, sizes_E, dtype)


_OVER_ROWS = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=[0],
    rhs_group_dimensions=[],
)


# Without these rules the gradient of a kernel would be reduced to every device.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(gather: GroupGather, kernel_EDF):
    return gather(kernel_EDF)


_gathered.defvjp(
    lambda gather, kernel_EDF: (gather(kernel_EDF), None),
    lambda gather, _, dkernel_EDF: (gather.cut(dkernel_EDF, dkernel_EDF.dtype),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _on_mesh(gather: GroupGather, chosen: Implementation, x_MD, kernel_EDF, sizes_E):
    """The plain product of the rows of each device with kernels that are gathered."""
    flops = 2 * x_MD.shape[0] * x_MD.shape[1] * kernel_EDF.shape[2]
    product = functools.partial(
        rows_by_kernels, implementation=chosen, dtype=x_MD.dtype
    )
    run = gather.each(product, ("md", "edf", "m"), "mf")
    return declare_flops(run, flops)(x_MD, kernel_EDF, sizes_E)


def _on_mesh_forward(gather, chosen, x_MD, kernel_EDF, sizes_E):
    y_MF = _on_mesh(gather, chosen, x_MD, kernel_EDF, sizes_E)
    return y_MF, (x_MD, kernel_EDF, sizes_E)


def _on_mesh_backward(gather, chosen, saved, dy_MF):
    x_MD, kernel_EDF, sizes_E = saved
    flops = 2 * x_MD.shape[0] * x_MD.shape[1] * dy_MF.shape[1]

    def of_rows(dy_MF, kernel_EDF, sizes_E):
        kernel_EFD = kernel_EDF.swapaxes(1, 2)
        return rows_by_kernels(dy_MF, kernel_EFD, sizes_E, chosen, dy_MF.dtype)

    def of_kernels(x_MD, dy_MF, sizes_E):
        # Added up in float32, and sent in the type of the rows.
        sums = kernels_of_rows(x_MD, dy_MF, sizes_E, chosen, jnp.float32)
        return sums.astype(x_MD.dtype)

    to_x = gather.each(of_rows, ("mf", "edf", "m"), "md")
    to_kernel = gather.each(of_kernels, ("md", "mf", "m"), "edf")
    dx_MD = declare_flops(to_x, flops)(dy_MF, kernel_EDF, sizes_E)
    dkernel_EDF = declare_flops(to_kernel, flops)(x_MD, dy_MF, sizes_E)
    return dx_MD, dkernel_EDF, None


_on_mesh.defvjp(_on_mesh_forward, _on_mesh_backward)


@jax.custom_vjp
def _packed_blocks(x_MD, kernel_EDF, sizes_E):
    """Blocks of rows that read the codes of their group alone."""

    def product(x, group):
        return rows_by_packed(x, kernel_EDF.at(group)).astype(x.dtype)

    outputs = kernel_EDF.codes.shape[-1]
    return _each_block(x_MD, sizes_E, product, outputs, x_MD.dtype)


def _packed_blocks_forward(x_MD, kernel_EDF, sizes_E):
    return _packed_blocks(x_MD, kernel_EDF, sizes_E), (kernel_EDF, sizes_E)


def _packed_blocks_backward(saved, dy_MF):
    kernel_EDF, sizes_E = saved
    kernel_EFD = kernel_EDF.unpacked(dy_MF.dtype).swapaxes(1, 2)
    return _blocks(dy_MF, kernel_EFD, sizes_E), None, None


_packed_blocks.defvjp(_packed_blocks_forward, _packed_blocks_backward)


@jax.custom_vjp
def _blocks(x_MD, kernel_EDF, sizes_E):
    return _by_blocks(x_MD, kernel_EDF, sizes_E, x_MD.dtype)


def _blocks_forward(x_MD, kernel_EDF, sizes_E):
    return _blocks(x_MD, kernel_EDF, sizes_E), (x_MD, kernel_EDF, sizes_E)


def _blocks_backward(saved, dy_MF):
    x_MD, kernel_EDF, sizes_E = saved
    dx_MD = _blocks(dy_MF, kernel_EDF.swapaxes(1, 2), sizes_E)
    dkernel_EDF = _kernels_by_blocks(x_MD, dy_MF, sizes_E, jnp.float32)
    return dx_MD, dkernel_EDF.astype(kernel_EDF.dtype), None


_blocks.defvjp(_blocks_forward, _blocks_backward)


def _by_blocks(x_MD, kernel_EDF, sizes_E, dtype):
    """Blocks of rows, each times the kernel of the group that it begins in."""

    def product(x, group):
        return lax.dot(x, kernel_EDF[group], preferred_element_type=dtype)

    return _each_block(x_MD, sizes_E, product, kernel_EDF.shape[-1], dtype)


def _each_block(x_MD, sizes_E, product, outputs, dtype):
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
