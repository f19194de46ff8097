"""Products in MXFP8, MXFP4 and NVFP4, whose scales lie along the dim that is summed."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.ops.block_scaling import FORMATS, Blocks, Exponents, Format, encode
from maxfdl.ops.contraction import FACTORS, Contraction, GroupedContraction, Name
from maxfdl.ops.cost import declare_flops
from maxfdl.ops.product import State
from maxfdl.ops.recipe import Recipe
from maxfdl.ops.row_blocks import row_blocks


class Microscaling(Recipe):
    """Scales of few numbers at hand: no state. See `maxfdl.ops.block_scaling`.

    The product is `jax.lax.scaled_dot`: XLA has a kernel for it where the hardware
    multiplies such blocks, as NVIDIA's Blackwell does. Elsewhere it multiplies, in
    bfloat16, the numbers that the blocks stand for, which is exact. Products of groups
    of rows do that everywhere, for XLA has no other kernel for them.

    In the backward pass the gradient goes straight through the rounding. Without
    `backward` it is multiplied in the type of activations, by the rounded factors.
    """

    format: ClassVar[Format]
    backward: bool = False
    exponents: Exponents = "up"

    def multiply(
        self, product: Contraction, x: jax.Array, kernel: jax.Array, state: State
    ) -> tuple[jax.Array, State]:
        if isinstance(product, GroupedContraction):
            return jnp.asarray(_multiply(self, product, x, kernel)), {}
        y_shape = product.shape_of_y(x, kernel)
        x, kernel = product.as_matrices("x", x), product.as_matrices("kernel", kernel)
        matrices = Contraction(
            x="emd", kernel="edf", y="emf", each="e", dtype=product.dtype
        )
        y = jnp.asarray(_multiply(self, matrices, x, kernel))
        return product.from_matrices("y", y, y_shape), {}


@dataclasses.dataclass(frozen=True)
class Mxfp8(Microscaling):
    """e4m3, with a power of two for 32 numbers.

    Args:
      backward: Whether both products of the backward pass are in the format, too.
        Their sums run along other dims, so each factor is rounded a second time, from
        the numbers that it had: blocks of the kernel lie along outputs then, those of
        activations along rows, and do not cross from one expert to another.
      exponents: How scales are rounded. `down` is the rule of OCP, by which numbers
        may be clipped, `up` clips none.
    """

    format: ClassVar[Format] = "mxfp8"
    backward: bool = False
    exponents: Exponents = "up"


@dataclasses.dataclass(frozen=True)
class Mxfp4(Microscaling):
    """e2m1, with a power of two for 32 numbers. Forward alone.

    Args:
      exponents: As of `Mxfp8`.
    """

    format: ClassVar[Format] = "mxfp4"
    exponents: Exponents = "up"


@dataclasses.dataclass(frozen=True)
class Nvfp4(Microscaling):
    """e2m1, with an e4m3 for 16 numbers and a float32 for a tensor. Forward alone."""

    format: ClassVar[Format] = "nvfp4"


# Letters: e kernels, m rows, d contracted, f outputs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(recipe, product, x, kernel):
    return _forward(recipe, product, x, kernel)[0]


def _forward(recipe, product, x, kernel):
    blocks_of = functools.partial(_blocks, recipe, product)
    of_x, of_kernel = blocks_of(x, "x", "d"), blocks_of(kernel, "kernel", "d")
    y = _product(product, "y", of_x, of_kernel)
    if recipe.backward:
        by_rows, in_blocks = _rows_in_blocks(recipe, product, "x", x)
        of_x = _blocks(recipe, in_blocks, by_rows, "x", "m")
        of_kernel = blocks_of(kernel, "kernel", "f")
    return y, (product, of_x, of_kernel)


def _backward(recipe, saved, dy):
    product, x, kernel = saved
    if recipe.backward:
        of_outputs = _blocks(recipe, product, dy, "y", "f")
        by_rows, in_blocks = _rows_in_blocks(recipe, product, "y", dy)
        of_rows = _blocks(recipe, in_blocks, by_rows, "y", "m")
        dx = _product(product, "x", of_outputs, kernel)
        return None, dx, _product(in_blocks, "kernel", x, of_rows)
    dy = dy.astype(product.dtype)
    dx = product.product("x", dy, kernel.numbers().astype(product.dtype))
    dkernel = product.product("kernel", x.numbers().astype(product.dtype), dy)
    dx = _times_tensor_scale(product, dx, "x", kernel, "kernel")
    return None, dx, _times_tensor_scale(product, dkernel, "kernel", x, "x")


_multiply.defvjp(_forward, _backward)


def _blocks(recipe, product, a, name: Name, letter: str) -> Blocks:
    """Returns an array of the product in blocks along the dim `letter`."""
    letters = product.letters(name)
    of_tensor = [i for i, c in enumerate(letters) if c not in _each(product, name)]
    return encode(
        a,
        letters.index(letter),
        recipe.format,
        exponents=recipe.exponents,
        tensor_dims=tuple(of_tensor),
    )


def _each(product: Contraction, name: Name) -> str:
    """Returns the letters along which an array has several scales of tensors."""
    return product.each if name == "kernel" else ""


def _product(product: Contraction, result: Name, a: Blocks, b: Blocks) -> jax.Array:
    """Returns y, or a gradient, in float32; blocks lie along the dim that is summed."""
    if isinstance(product, GroupedContraction):
        y = product.product(result, a.numbers(), b.numbers())
    else:
        y = _scaled_dot(a, b)
    for name, factor in zip(FACTORS[result], (a, b), strict=True):
        y = _times_tensor_scale(product, y, result, factor, name)
    return y


def _scaled_dot(a: Blocks, b: Blocks) -> jax.Array:
    """Returns a product for each index of the first dim."""

    def multiply(a: Blocks, b: Blocks) -> jax.Array:
        return lax.scaled_dot(
            a.values,
            b.values,
            lhs_scale=a.scales,
            rhs_scale=b.scales,
            dimension_numbers=(((a.dim,), (b.dim,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
        )

    (groups, *dims), other = a.values.shape, b.values.shape
    free = dims[2 - a.dim] * other[3 - b.dim]
    return declare_flops(multiply, 2 * groups * free * a.size)(a, b)


def _times_tensor_scale(
    product: Contraction, a: jax.Array, result: Name, factor: Blocks, name: Name
) -> jax.Array:
    """Returns a result times the scale of the tensor that a factor of it is."""
    if factor.tensor_scale is None:
        return a
    return a * product.spread(factor.tensor_scale, _each(product, name), result)


def _rows_in_blocks(
    recipe: Microscaling, product: Contraction, name: Name, a: jax.Array
) -> tuple[jax.Array, Contraction]:
    """Returns rows so that each block is of one group, and their product."""
    if not isinstance(product, GroupedContraction):
        return a, product
    size = FORMATS[recipe.format].size
    blocks, group_N = row_blocks(product, name, a, size)

    def sizes_of(group_N, sizes):
        blocks = jnp.bincount(group_N, length=sizes.size)
        return (size * blocks).astype(sizes.dtype)

    sizes = product.on_each(sizes_of, ("m", "m"), "m")(group_N, product.sizes)
    return blocks.reshape(-1, a.shape[1]), dataclasses.replace(
        product, sizes=sizes, group=jnp.repeat(group_N, size)
    )
