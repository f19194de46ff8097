"""FP8 products with a scale per block of numbers, as DeepSeek-V3 trains."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from maxfdl.ops.contraction import (
    Contraction,
    GroupedContraction,
    Name,
    greatest_magnitude,
)
from maxfdl.ops.cost import expect_flops
from maxfdl.ops.fp8 import Format, Formats, quantise, scale_of
from maxfdl.ops.gather import Gather
from maxfdl.ops.product import State
from maxfdl.ops.recipe import Recipe
from maxfdl.ops.row_blocks import padded, row_blocks


@dataclasses.dataclass(frozen=True)
class Fp8Block(Formats, Recipe):
    """Scales of blocks of the tensors at hand: no state.

    Activations and gradients have a scale for each `1 x size` numbers along the dim
    that is summed, kernels for each `size x size`. Each product sums `size` numbers,
    multiplies by the scales of the block, and adds that up in float32:
    `y[t, o] = sum_b s_x[t, b] s_k[b, o // size] sum_{i in b} x[t, i] k[i, o]`. The last
    block of a dim may be shorter.

    The gradient of a kernel sums over tokens, so its factors have a scale for each
    `size x 1`; activations are quantised anew for that from what was kept. Blocks of
    tokens do not cross from one expert to another. DeepSeek-V3,
    https://arxiv.org/abs/2412.19437, section 3.3, which has e4m3 for gradients too.

    Args:
      size: Numbers along the side of a block.
    """

    gathers_kernel = True

    backward: Format = "e4m3"
    size: int = 128

    @staticmethod
    def check_config(node):
        if node.size < 1:
            yield f"Fp8Block size ({node.size}) must be at least 1."

    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        if product.gather is not None and not self._cut_between_blocks(product, kernel):
            kernel = product.gather.weight(kernel, product.dtype).astype(kernel.dtype)
            product = dataclasses.replace(product, gather=product.gather.done())
        if isinstance(product, GroupedContraction):
            return jnp.asarray(_multiply(self, product, x, kernel)), {}
        y_shape = product.shape_of_y(x, kernel)
        gather = product.gather and _GatherMatrices(
            product, product.gather, kernel.shape
        )
        matrices = dataclasses.replace(MATRICES, gather=gather, dtype=product.dtype)
        x, kernel = product.as_matrices("x", x), product.as_matrices("kernel", kernel)
        y = jnp.asarray(_multiply(self, matrices, x, kernel))
        return product.from_matrices("y", y, y_shape), {}

    def _cut_between_blocks(self, product: Contraction, kernel: jax.Array) -> bool:
        """Returns whether each shard of a kernel has whole blocks, so that it can be
        quantised where it lies."""
        assert product.gather is not None
        parts = product.sides("kernel")
        for dim, _ in product.gather.cuts:
            letter = product.kernel[dim]
            side = next(part for part in parts if letter in part)
            inner = math.prod(kernel.shape[product.kernel.index(c)] for c in side)
            if side[0] != letter or inner % self.size:
                return False
        return True


MATRICES = Contraction(x="emd", kernel="edf", y="emf", each="e")


@dataclasses.dataclass(frozen=True)
class _GatherMatrices:
    """Gathers a kernel that is given as matrices, along the dims that it has.

    Args:
      product: Knows the dims.
      gather: Gathers an array that has them.
      shape: Size of each.
    """

    product: Contraction
    gather: Gather
    shape: tuple[int, ...]

    def __call__(self, a: jax.Array) -> jax.Array:
        return self._in_place(self.gather, a)

    def weight(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        return self._in_place(lambda a: self.gather.weight(a, dtype), a)

    def cut(self, a: jax.Array, dtype: DTypeLike) -> jax.Array:
        whole = self.gather.whole_shape(self.shape)
        kernel = self.product.from_matrices("kernel", a, whole)
        return self.product.as_matrices("kernel", self.gather.cut(kernel, dtype))

    def done(self) -> "_GatherMatrices":
        whole = self.gather.whole_shape(self.shape)
        return dataclasses.replace(self, gather=self.gather.done(), shape=whole)

    @property
    def cuts(self) -> Sequence[tuple[int, tuple[str, ...]]]:
        firsts = self._firsts()
        return [(firsts.index(dim), names) for dim, names in self.gather.cuts]

    @property
    def lanes(self) -> int:
        return self.gather.lanes

    def by_lane(self, a: jax.Array) -> jax.Array:
        return self.gather.by_lane(a)

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        whole = self.gather.whole_shape(self.shape)
        sizes = dict(zip(self.product.kernel, whole, strict=True))
        sides = self.product.sides("kernel")
        return tuple(math.prod(sizes[letter] for letter in side) for side in sides)

    def greatest(self, a: jax.Array, dims: Sequence[int]) -> jax.Array:
        firsts = self._firsts()
        found = [firsts[dim] for dim in dims]
        return self.gather.greatest(a, [dim for dim in found if dim is not None])

    def whole(self, a: jax.Array, dims: Sequence[int | None]) -> jax.Array:
        firsts = self._firsts()
        return self.gather.whole(
            a, [dim if dim is None else firsts[dim] for dim in dims]
        )

    def _firsts(self) -> list[int | None]:
        """Returns the first dim of the kernel that each dim of the matrices joins."""
        sides = self.product.sides("kernel")
        return [self.product.kernel.index(s[0]) if s else None for s in sides]

    def _in_place(self, gather: Callable[[jax.Array], jax.Array], a: jax.Array):
        kernel = self.product.from_matrices("kernel", a, self.shape)
        return self.product.as_matrices("kernel", gather(kernel))


# Rows and kernels are those of `MATRICES`, or of a `GroupedContraction`.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(recipe, product, x, kernel):
    return _multiply_forward(recipe, product, x, kernel)[0]


def _multiply_forward(recipe, product, x, kernel):
    size, dtype = recipe.size, recipe.forward_dtype
    x = _Blocks.of(x, product.x, {"d": size}, dtype)
    kernel = _Blocks.of(kernel, product.kernel, {"d": size, "f": size}, dtype)
    y = _sum_of_blocks(product, "y", "d", x, kernel.gathered(product))
    return y, (product, x, kernel)


def _multiply_backward(recipe, saved, dy):
    product, x, kernel = saved
    size, dtype = recipe.size, recipe.backward_dtype
    of_outputs = _Blocks.of(dy, product.y, {"f": size}, dtype)
    dx = _sum_of_blocks(product, "x", "f", of_outputs, kernel.gathered(product))
    x_NSD, group_N = row_blocks(product, "x", x.numbers(), size)
    dy_NSF, _ = row_blocks(product, "y", dy, size)
    x = _Blocks.of(x_NSD, "nsd", {"s": size}, recipe.forward_dtype)
    dy = _Blocks.of(dy_NSF, "nsf", {"s": size}, dtype)
    if isinstance(product, GroupedContraction):
        dkernel = _kernels_of_groups(product, x, dy, group_N)
    else:
        dkernel = _kernels_of_blocks(product, x, dy, group_N, kernel.shape[0])
    return None, dx, product.cut(dkernel)


_multiply.defvjp(_multiply_forward, _multiply_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Blocks:
    """An array in FP8, with a scale for each block of its numbers.

    Args:
      values: The array, divided by its scales.
      scales: One for each block, with as many dims as the array.
      letters: One for each dim.
      sizes: Side of a block along the dims that blocks cut; 1 along others.
    """

    values: Any
    scales: Any
    letters: str = dataclasses.field(metadata={"static": True})
    sizes: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, a: jax.Array, letters: str, cut: dict[str, int], dtype) -> "_Blocks":
        sizes = tuple(cut.get(letter, 1) for letter in letters)
        whole = padded(a, sizes)
        pairs = zip(whole.shape, sizes, strict=True)
        split = [each for dim, size in pairs for each in (dim // size, size)]
        inside = tuple(range(1, 2 * a.ndim, 2))
        scales = scale_of(greatest_magnitude(whole.reshape(split), inside), dtype)
        blocks = cls(a, scales, letters, sizes)
        return dataclasses.replace(
            blocks, values=quantise(a, blocks._spread(scales, letters), dtype)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def gathered(self, product: Contraction) -> "_Blocks":
        """Returns a kernel ready for use."""
        return dataclasses.replace(
            self,
            values=product.gathered(self.values),
            scales=product.whole(self.scales, self.letters),
        )

    def numbers(self) -> jax.Array:
        """Returns what the FP8 array stands for, in float32."""
        scales = self._spread(self.scales, self.letters)
        return self.values.astype(jnp.float32) * scales

    def number(self, letter: str) -> int:
        """Returns how many blocks there are along a dim."""
        return self.scales.shape[self.letters.index(letter)]

    def whole(self, letter: str) -> "_Blocks":
        """Returns the same with zeros after it, so that the last block is whole."""
        pairs = zip(self.letters, self.sizes, strict=True)
        sizes = [size if each == letter else 1 for each, size in pairs]
        return dataclasses.replace(self, values=padded(self.values, sizes))

    def at(self, letter: str, i: Any) -> tuple[jax.Array, jax.Array, str]:
        """Returns block `i` along a dim, its scales, and the dims that they have."""
        dim = self.letters.index(letter)
        size = self.sizes[dim]
        values = lax.dynamic_slice_in_dim(self.values, i * size, size, dim)
        scales = lax.dynamic_index_in_dim(self.scales, i, dim, keepdims=False)
        kept = self.letters.replace(letter, "")
        return values, self._spread(scales, kept), kept

    def _spread(self, scales: jax.Array, kept: str) -> jax.Array:
        """Returns scales with a number for each of the array, along dims `kept`."""
        for i, letter in enumerate(kept):
            dim = self.letters.index(letter)
            if self.sizes[dim] > 1:
                scales = jnp.repeat(scales, self.sizes[dim], axis=i)
                scales = lax.slice_in_dim(scales, 0, self.values.shape[dim], axis=i)
        return scales


def _sum_of_blocks(
    product: Contraction, result: Name, summed: str, a: _Blocks, b: _Blocks
) -> jax.Array:
    """Returns a product in float32, added up block by block of the dim `summed`."""
    number, a, b = a.number(summed), a.whole(summed), b.whole(summed)

    def part(i):
        of_a, a_scale, a_kept = a.at(summed, i)
        of_b, b_scale, b_kept = b.at(summed, i)
        scale = product.spread(a_scale, a_kept, result)
        scale = scale * product.spread(b_scale, b_kept, result)
        return product.product(result, of_a, of_b) * scale

    add = lambda i, total: total + part(i)  # noqa: E731
    first = jnp.zeros(jax.eval_shape(part, 0).shape, jnp.float32)
    return lax.fori_loop(0, number, add, first)


def _kernels_of_groups(
    product: GroupedContraction, x: _Blocks, dy: _Blocks, group_N: jax.Array
) -> jax.Array:
    """Returns the gradient of the kernels of groups, added up block by block.

    Each device adds up the blocks of its own rows that groups hold.
    """

    def of_device(x, x_scales, dy, dy_scales, group_N, sizes):
        blocks, size, width = x.shape
        first = jnp.zeros((1, sizes.size, width, dy.shape[2]), jnp.float32)

        def added_up(sizes, group_N, *factors):
            number = jnp.sum(-(-sizes // size))
            return _added_up([a[None] for a in factors], group_N, first, number)[0]

        rows = blocks * size if product.expected is None else product.expected
        run = expect_flops(added_up, 2 * rows * width * dy.shape[2])
        total = run(sizes, group_N, x, x_scales, dy, dy_scales)
        return total if product.gather is None else total.astype(product.dtype)

    inputs = "m.d", "m.d", "m.f", "m.f", "m", "m"
    factors = x.values, x.scales, dy.values, dy.scales
    run = product.on_each(of_device, inputs, "edf")
    return run(*factors, group_N, product.sizes).astype(jnp.float32)


def _kernels_of_blocks(
    product: Contraction, x: _Blocks, dy: _Blocks, group_N: jax.Array, groups: int
) -> jax.Array:
    """Returns the gradient of the kernels [groups, D, F], added up block by block.

    Each device adds up the blocks of its own rows, a lane; then lanes are added up.
    Rows of a device that are no whole blocks are one lane.
    """
    blocks, lanes = x.shape[0], product.lanes
    if blocks // groups % lanes:
        lanes = 1

    def in_lanes(a: jax.Array) -> jax.Array:
        """[groups lanes blocks, ...] to [lanes, groups blocks, ...]"""
        a = a.reshape(-1, lanes, blocks // lanes // groups, *a.shape[1:])
        a = a.swapaxes(0, 1).reshape(lanes, -1, *a.shape[3:])
        return product.by_lane(a) if lanes > 1 else a

    factors = [in_lanes(a) for a in (x.values, x.scales, dy.values, dy.scales)]
    group = in_lanes(group_N)[0]
    first = jnp.zeros((lanes, groups, x.shape[2], dy.shape[2]), jnp.float32)
    first = product.by_lane(first) if lanes > 1 else first
    total = _added_up(factors, group, first, group.size)
    if lanes == 1:
        return total[0]
    # What crosses the mesh is in the type of activations, as with `Dot`. A product with
    # ones, because XLA:CPU aborts on a sum of bfloat16 over lanes inside a `shard_map`.
    total = total.astype(product.dtype)
    ones = jnp.ones(lanes, total.dtype)
    return jnp.tensordot(ones, total, 1, preferred_element_type=total.dtype).astype(
        jnp.float32
    )


def _added_up(
    factors: list[jax.Array],
    group_N: jax.Array,
    first: jax.Array,
    number: int | jax.Array,
) -> jax.Array:
    """Adds up products of blocks, lane by lane, each at the place of its group.

    Args:
      factors: [lanes, N, ...] blocks of x, their scales, and the same of dy.
      group_N: Group of each block.
      first: [lanes, groups, D, F] zeros.
      number: How many blocks there are; those that follow are empty.
    """
    dims = (((1,), (1,)), ((0,), (0,)))

    def add(i, total):
        of_x, x_scale, of_dy, dy_scale = (a[:, i] for a in factors)
        part = lax.dot_general(of_x, of_dy, dims, preferred_element_type=jnp.float32)
        part = part * x_scale.swapaxes(1, 2) * dy_scale
        return total.at[:, group_N[i]].add(part)

    return lax.fori_loop(0, number, add, first)
