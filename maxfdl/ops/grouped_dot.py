"""Products of groups of rows with a kernel each, as a leaf op.

A quantised product is another `GroupedProduct` in the same field. Letters: M rows, D
contracted, F outputs, E groups.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maxfdl.markers import Operational
from maxfdl.ops.codec import PackedKernel
from maxfdl.ops.cost import declare_flops
from maxfdl.ops.gather import GroupGather
from maxfdl.ops.grouped_rows import (
    Implementation,
    each_block,
    kernels_of_rows,
    rows_by_kernels,
)
from maxfdl.ops.packed_product import is_read_packed, rows_by_packed
from maxfdl.ops.product import Product, State
from maxfdl.ops.target import target_platform


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
        expected: int | None = None,
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
          expected: Rows of one device that groups are expected to have, for counts of
            FLOPs; None: all.

        Returns:
          The product, in the type of the rows, and what is new of the state.
        """


@dataclasses.dataclass(frozen=True)
class GroupedDot(GroupedProduct):
    """Each row times the kernel of its group, in the type of `x`.

    Cost: `2 M D F` FLOPs forward, three times that with gradients.

    Args:
      implementation: For groups of unequal size. `ragged` is `jax.lax.ragged_dot`, and
        a kernel of its own for gradients on TPUs; `blocks` a loop over 64 rows at a
        time. XLA:CPU computes the first as E whole products, see `resolve`.
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
        expected: int | None = None,
    ) -> tuple[Float[Array, "M _"], State]:
        kernel_EDF = kernel_EDF.astype(x_MD.dtype)
        if sizes_E is None:
            product = counted_for(_by_equal_groups, x_MD, kernel_EDF, expected)
            return product(x_MD, kernel_EDF), {}
        if gather is not None:
            kernel_EDF = _gathered(gather, kernel_EDF)
        how = gather, self.resolve(), expected
        return jnp.asarray(_by_group(*how, x_MD, kernel_EDF, sizes_E)), {}

    def of_packed(
        self,
        x_MD: Float[Array, "M D"],
        kernel_EDF: PackedKernel,
        state: State,
        sizes_E: Int[Array, " E"] | None,
        expected: int | None = None,
    ) -> tuple[Float[Array, "M F"], State]:
        rows, codec = x_MD.shape[0], kernel_EDF.codec
        in_blocks = self.resolve() == "blocks" and sizes_E is not None
        if in_blocks and is_read_packed(rows, codec):
            return _packed_blocks(x_MD, kernel_EDF, sizes_E), {}
        return super().of_packed(x_MD, kernel_EDF, state, sizes_E, expected=expected)


def counted_for(
    product: Callable, x_MD: jax.Array, kernel_EDF: jax.Array, expected: int | None
) -> Callable:
    """Returns a product of all rows, whose model FLOPs are those of `expected` rows.

    Groups of equally many rows, as a capacity makes them, have empty rows, which are
    multiplied, too.
    """
    rows, groups = x_MD.shape[0], kernel_EDF.shape[0]
    if expected is None or expected >= rows:
        return product
    return declare_flops(product, 2 * expected * (kernel_EDF.size // groups))


def _by_equal_groups(x_MD: jax.Array, kernel_EDF: jax.Array) -> jax.Array:
    groups, _, outputs = kernel_EDF.shape
    x_EMD = x_MD.reshape(groups, -1, x_MD.shape[1])
    y_EMF = jnp.einsum("emd,edf->emf", x_EMD, kernel_EDF)
    return y_EMF.reshape(-1, outputs)


# Without these rules the gradient of a kernel would be reduced to every device.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(gather: GroupGather, kernel_EDF):
    return gather(kernel_EDF)


_gathered.defvjp(
    lambda gather, kernel_EDF: (gather(kernel_EDF), None),
    lambda gather, _, dkernel_EDF: (gather.cut(dkernel_EDF, dkernel_EDF.dtype),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _by_group(
    gather: GroupGather | None,
    chosen: Implementation,
    expected: int | None,
    x_MD,
    kernel_EDF,
    sizes_E,
):
    """The product of the rows of each device with kernels that are gathered."""

    def product(x_MD, kernel_EDF, sizes_E):
        how = chosen, x_MD.dtype, expected
        return rows_by_kernels(x_MD, kernel_EDF, sizes_E, *how)

    run = _on_each(gather, product, ("md", "edf", "m"), "mf")
    return run(x_MD, kernel_EDF, sizes_E)


def _by_group_forward(gather, chosen, expected, x_MD, kernel_EDF, sizes_E):
    y_MF = _by_group(gather, chosen, expected, x_MD, kernel_EDF, sizes_E)
    return y_MF, (x_MD, kernel_EDF, sizes_E)


def _by_group_backward(gather, chosen, expected, saved, dy_MF):
    x_MD, kernel_EDF, sizes_E = saved
    how = chosen, x_MD.dtype, expected

    def of_rows(dy_MF, kernel_EDF, sizes_E):
        return rows_by_kernels(dy_MF, kernel_EDF.swapaxes(1, 2), sizes_E, *how)

    def of_kernels(x_MD, dy_MF, sizes_E):
        return kernels_of_rows(x_MD, dy_MF, sizes_E, *how)

    to_x = _on_each(gather, of_rows, ("mf", "edf", "m"), "md")
    to_kernel = _on_each(gather, of_kernels, ("md", "mf", "m"), "edf")
    dx_MD = to_x(dy_MF, kernel_EDF, sizes_E)
    return dx_MD, to_kernel(x_MD, dy_MF, sizes_E), None


_by_group.defvjp(_by_group_forward, _by_group_backward)


def _on_each(gather: GroupGather | None, function: Callable, *letters) -> Callable:
    """Returns `function` run on each device of a mesh, see `GroupGather.each`."""
    return function if gather is None else gather.each(function, *letters)


@jax.custom_vjp
def _packed_blocks(x_MD, kernel_EDF, sizes_E):
    """Blocks of rows that read the codes of their group alone."""

    def product(x, group):
        return rows_by_packed(x, kernel_EDF.at(group)).astype(x.dtype)

    outputs = kernel_EDF.codes.shape[-1]
    return each_block(x_MD, sizes_E, product, outputs, x_MD.dtype)


def _packed_blocks_forward(x_MD, kernel_EDF, sizes_E):
    return _packed_blocks(x_MD, kernel_EDF, sizes_E), (kernel_EDF, sizes_E)


def _packed_blocks_backward(saved, dy_MF):
    kernel_EDF, sizes_E = saved
    kernel_EFD = kernel_EDF.unpacked(dy_MF.dtype).swapaxes(1, 2)
    dx_MD = rows_by_kernels(dy_MF, kernel_EFD, sizes_E, "blocks", dy_MF.dtype)
    return dx_MD, None, None


_packed_blocks.defvjp(_packed_blocks_forward, _packed_blocks_backward)
