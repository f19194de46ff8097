"""Matrix products as leaf ops: what a projection does with its kernel.

A quantised product is another `MatrixProduct` in the same field.
"""

import abc
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maxfdl.ops.codec import PackedKernel
from maxfdl.ops.packed_product import is_read_packed, rows_by_packed
from maxfdl.ops.product import Product, State


class MatrixProduct(Product):
    """Multiplies activations by one kernel, in the forward and the backward pass."""

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        state: State,
        *,
        contract: int = 1,
        equation: str | None = None,
        out_dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "..."], State]:
        """Returns the product, as `Product` does.

        Args:
          x, kernel, state: As there.
          contract: How many dims are summed over: the last of `x`, the first of
            `kernel`.
          equation: An einsum of both in place of that, for what is no projection.
          out_dtype: Type of the result; None is that of `x`.
        """

    @abc.abstractmethod
    def backward(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        dy: Float[Array, "..."],
        *,
        contract: int = 1,
        kernel_dtype: DTypeLike | None = None,
        outputs_first: bool = False,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """Returns the gradients of `x` and of `kernel`, for who forms that of y itself.

        Args:
          x: Activations.
          kernel: The weights, ready for use.
          dy: Gradient of the product, in the type of `x`.
          contract: As in the product.
          kernel_dtype: Type of the kernel's gradient; None is that of `x`.
          outputs_first: Whether the kernel's gradient comes transposed.
        """


@dataclasses.dataclass(frozen=True)
class Dot(MatrixProduct):
    """The plain product, in the type of `x`.

    Cost: `2 * prod(kernel.shape)` FLOPs per token forward, three times that with
    gradients.
    """

    is_plain = True

    def __call__(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        state: State,
        *,
        contract: int = 1,
        equation: str | None = None,
        out_dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "..."], State]:
        out_dtype = x.dtype if out_dtype is None else out_dtype
        kernel = kernel.astype(x.dtype)
        if equation is not None:
            y = jnp.einsum(equation, x, kernel, preferred_element_type=out_dtype)
            return y, {}
        return _product(x, kernel, contract, out_dtype), {}

    def of_packed(
        self,
        x: Float[Array, "..."],
        kernel: PackedKernel,
        state: State,
        *,
        contract: int = 1,
        equation: str | None = None,
        out_dtype: DTypeLike | None = None,
    ) -> tuple[Float[Array, "..."], State]:
        lead = x.shape[: x.ndim - contract]
        rows = math.prod(lead)
        if equation is not None or not is_read_packed(rows, kernel.codec):
            whole = kernel.unpacked(x.dtype)
            kwargs: Any = dict(equation=equation, out_dtype=out_dtype)
            return self(x, whole, state, contract=contract, **kwargs)
        y = rows_by_packed(x.reshape(rows, -1), kernel)
        y = y.reshape(*lead, *kernel.outputs)
        return y.astype(x.dtype if out_dtype is None else out_dtype), {}

    def backward(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        dy: Float[Array, "..."],
        *,
        contract: int = 1,
        kernel_dtype: DTypeLike | None = None,
        outputs_first: bool = False,
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        kernel = kernel.astype(x.dtype)
        tokens = tuple(range(x.ndim - contract))
        outputs = kernel.ndim - contract
        dy_outputs = tuple(range(dy.ndim - outputs, dy.ndim))
        kernel_outputs = tuple(range(contract, kernel.ndim))
        dx = lax.dot_general(dy, kernel, ((dy_outputs, kernel_outputs), ((), ())))
        # No transposed product: XLA:CPU folds a transpose into a product of bfloat16
        # with a float32 result, and has no code for what comes of it on CPUs that
        # multiply bfloat16 natively (JAX 0.10.2 and 0.12.0).
        first, second = (dy, x) if outputs_first else (x, dy)
        dkernel = lax.dot_general(
            first,
            second,
            ((tokens, tokens), ((), ())),
            preferred_element_type=kernel_dtype,
        )
        return dx, dkernel


# JAX's own rule forms the kernel's gradient transposed, and XLA:CPU then copies the
# larger operand; this one forms it as the kernel lies. A gated MLP with gradients
# takes 0.6 to 0.8 of the time (BUILD_NOTES.md, 2026-11-22).
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, contract, out_dtype):
    return _product_forward(x, kernel, contract, out_dtype)[0]


def _product_forward(x, kernel, contract, out_dtype):
    dims = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract)))
    # Not `_product` itself: the remat policies `dots` would not see the product in it.
    y = lax.dot_general(x, kernel, (dims, ((), ())), preferred_element_type=out_dtype)
    return y, (x, kernel)


def _product_backward(contract, out_dtype, saved, dy):
    x, kernel = saved
    return Dot().backward(x, kernel, dy.astype(x.dtype), contract=contract)


_product.defvjp(_product_forward, _product_backward)


def leave_gradient(
    y: Float[Array, "..."], before: Float[Array, "..."], observe
) -> Float[Array, "..."]:
    """Returns `y`; the backward pass leaves `observe(dy, before)` for `before`.

    Args:
      y: What has the gradient that is observed.
      before: A state value that is declared with `backward`.
      observe: From the gradient of `y` and the value to its next one, of equal shape.
    """

    @jax.custom_vjp
    def same(y, before):
        return y

    def forward(y, before):
        return y, before

    def backward(before, dy):
        return dy, observe(dy, before)

    same.defvjp(forward, backward)
    return same(y, before)
