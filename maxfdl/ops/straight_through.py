"""Rounding that gradients pass as if it were not there (Bengio et al. 2013).

https://arxiv.org/abs/1308.3432
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def straight_through(
    round_: Callable[[jax.Array], jax.Array], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns `round_(x)`, whose gradient is that of x, in float32.

    Infinities and NaN stay what they are, so that a step that overflowed is seen.

    Args:
      round_: From an array to one of equal shape.
      x: The array.
    """

    @jax.custom_vjp
    def rounded(x):
        return jnp.where(jnp.isfinite(x), round_(x), x).astype(jnp.float32)

    def forward(x):
        return rounded(x), None

    def backward(_, dy):
        return (dy.astype(x.dtype),)

    rounded.defvjp(forward, backward)
    return rounded(x)
