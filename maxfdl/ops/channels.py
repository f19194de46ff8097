"""Products in few bits with a scale per row of activations and per output of a kernel.

With `x = s_x x'` and `kernel = s_k kernel'`, where `'` is in few bits,
`y = s_x s_k sum x' kernel'`. A gradient is multiplied by the scales of the other factor
before it is quantised, for they lie along the dim that the product sums over:
`dx = (dy s_k) kernel'^T`. So the backward pass needs no second copy of the other
factor, and quantises the gradient twice.
"""

import abc
import dataclasses
import functools

import jax

from maxfdl.ops.contraction import Contraction, Name


class Coder(abc.ABC):
    """How the numbers that share a scale are rounded to few bits.

    A coder is a frozen dataclass, as a `Recipe` is.
    """

    @abc.abstractmethod
    def encode(
        self, product: Contraction, a: jax.Array, name: Name, kept: str
    ) -> tuple[jax.Array, jax.Array]:
        """Returns an array in few bits, and a scale for each value of `kept`.

        Args:
          product: The product in which the array stands.
          a: The array, in float32.
          name: Which of the arrays of the product it is.
          kept: Letters of the dims along which scales differ.
        """


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def by_channel(
    forward: Coder,
    backward: Coder | None,
    product: Contraction,
    x: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Returns y in float32. For the backward pass the coded factors are kept.

    Args:
      forward: Codes activations and kernels.
      backward: Codes gradients. None: they are multiplied in the product's type, by
        the numbers that the coded factor stands for.
      product: Which dims are summed.
      x, kernel: The factors, in float32.
    """
    return _forward(forward, backward, product, x, kernel)[0]


def _forward(forward, backward, product, x, kernel):
    x = _Coded.of(forward, product, x, "x", "y")
    kernel = _Coded.of(forward, product, kernel, "kernel", "y")
    whole = kernel.gathered(product)
    y = product.product("y", x.values, whole.values)
    for factor in (x, whole):
        y = factor.scaling(product, y, "y")
    return y, (product, x, kernel)


def _backward(forward, backward, saved, dy):
    product, x, kernel = saved

    def gradient(result: Name, other: _Coded):
        for_result = other.scaling(product, dy, "y")
        if backward is None:
            for_result, values = (
                a.astype(product.dtype) for a in (for_result, other.values)
            )
            return product.product(result, *_factors(result, for_result, values))
        coded = _Coded.of(backward, product, for_result, "y", result)
        factors = _factors(result, coded.values, other.values)
        return coded.scaling(product, product.product(result, *factors), result)

    dx = gradient("x", kernel.gathered(product))
    return None, dx, product.cut(gradient("kernel", x))


by_channel.defvjp(_forward, _backward)


def _factors(result: Name, dy, other):
    """Returns the factors of a gradient in the order of `FACTORS`."""
    return (dy, other) if result == "x" else (other, dy)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Coded:
    """A factor in few bits, with a scale for each value of the letters `kept`."""

    values: jax.Array
    scales: jax.Array
    kept: str = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, coder: Coder, product, a, name: Name, result: Name) -> "_Coded":
        """Codes the factor `name` of `result`, with a scale for each of its sums."""
        kept = product.kept(name, result)
        return cls(*coder.encode(product, a, name, kept), kept)

    def gathered(self, product: Contraction) -> "_Coded":
        """Returns a kernel ready for use."""
        scales = product.whole(self.scales, self.kept)
        return _Coded(product.gathered(self.values), scales, self.kept)

    def scaling(self, product: Contraction, a: jax.Array, name: Name) -> jax.Array:
        """Returns the array `name` of the product, times the scales."""
        return a * product.spread(self.scales, self.kept, name)
