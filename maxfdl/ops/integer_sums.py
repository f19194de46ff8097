"""Sums of products of int8, exact however many terms they have.

`127 * 127` fits 133,152 times in an int32. A sum over more terms, as that of a kernel's
gradient over the tokens of a large batch or over a vocabulary, is cut in parts.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MOST_TERMS = 2**17
"""Terms of a part."""

Factor = tuple[jax.Array, Sequence[int]]
"""An array, and its dims that a product sums over."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Which terms a part has: each `number`-th, from the one at `first`.

    Neighbours go to different parts, so that a dim that lies over devices stays there.
    """

    first: Any = 0
    number: int = 1

    def of_groups(self, sizes: jax.Array) -> jax.Array:
        """Returns how many terms of each group a part has; groups lie in order."""
        if self.number == 1:
            return sizes
        ends = jnp.cumsum(sizes)
        before = lambda end: (end - self.first + self.number - 1) // self.number  # noqa: E731
        return before(ends) - before(ends - sizes)


def type_of_sums(dtype: Any) -> Any:
    """Returns the type in which products of numbers of a type are added up."""
    return jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32


def in_float32(
    multiply: Callable[[jax.Array, jax.Array, Part], jax.Array], a: Factor, b: Factor
) -> jax.Array:
    """Returns `multiply` of two factors, in float32.

    Args:
      multiply: Of two arrays and the part of the sum that they have, the product in
        `type_of_sums`.
      a, b: The factors. Their summed dims correspond.
    """
    (x, x_dims), (y, y_dims) = a, b
    sizes = [x.shape[dim] for dim in x_dims]
    if type_of_sums(x.dtype) == jnp.float32 or math.prod(sizes) <= MOST_TERMS:
        return multiply(x, y, Part()).astype(jnp.float32)
    size = max(sizes)
    longest = sizes.index(size)
    number = -(-size // max(1, MOST_TERMS * size // math.prod(sizes)))
    x = _apart(x, x_dims[longest], number)
    y = _apart(y, y_dims[longest], number)

    def add(i, total):
        return total + multiply(x[i], y[i], Part(i, number)).astype(jnp.float32)

    first = multiply(x[0], y[0], Part(0, number)).astype(jnp.float32)
    return lax.fori_loop(1, number, add, first)


def _apart(x: jax.Array, dim: int, number: int) -> jax.Array:
    """Returns the parts of an array, along a new first dim, filled up with zeros."""
    pads = [(0, -x.shape[dim] % number if i == dim else 0) for i in range(x.ndim)]
    x = jnp.pad(x, pads)
    shape = [*x.shape[:dim], x.shape[dim] // number, number, *x.shape[dim + 1 :]]
    return jnp.moveaxis(x.reshape(shape), dim + 1, 0)
