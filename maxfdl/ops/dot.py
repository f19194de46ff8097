"""Matrix products as leaf ops: what a projection does with its kernel.

A quantised product is another class in the same field.
"""

import dataclasses
import functools

import jax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Dot:
    """The plain product, in the type of `x`.

    Cost: `2 * prod(kernel.shape)` FLOPs per token forward, three times that with
    gradients.
    """

    def __call__(
        self,
        x: Float[Array, "..."],
        kernel: Float[Array, "..."],
        contract: int = 1,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "..."]:
        """Contracts the last `contract` dims of `x` with the first of `kernel`."""
        out_dtype = x.dtype if out_dtype is None else out_dtype
        return _product(x, kernel.astype(x.dtype), contract, out_dtype)


# JAX's own rule forms the kernel's gradient transposed, and XLA:CPU then copies the
# larger operand; this one forms it as the kernel lies. A gated MLP with gradients
# takes 0.6 to 0.8 of the time (BUILD_NOTES.md, 2026-11-22).
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, contract, out_dtype):
    dims = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract)))
    return lax.dot_general(
        x, kernel, (dims, ((), ())), preferred_element_type=out_dtype
    )


def _product_forward(x, kernel, contract, out_dtype):
    return _product(x, kernel, contract, out_dtype), (x, kernel)


def _product_backward(contract, out_dtype, saved, dy):
    x, kernel = saved
    dy = dy.astype(x.dtype)
    tokens = tuple(range(x.ndim - contract))
    outputs = kernel.ndim - contract
    dy_outputs = tuple(range(dy.ndim - outputs, dy.ndim))
    kernel_outputs = tuple(range(contract, kernel.ndim))
    dx = lax.dot_general(dy, kernel, ((dy_outputs, kernel_outputs), ((), ())))
    dkernel = lax.dot_general(x, dy, ((tokens, tokens), ((), ())))
    return dx, dkernel


_product.defvjp(_product_forward, _product_backward)
