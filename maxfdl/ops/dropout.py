"""Dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x: Float[Array, "..."], rate: float, key: Key[Array, ""]
) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate`; the rest grow by `1/(1-rate)`."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
