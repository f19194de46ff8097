"""Dropout."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def dropout(
    x: Float[Array, "B ..."], rate: float, keys: Key[Array, " B"]
) -> Float[Array, "B ..."]:
    """Zeroes each element with probability `rate`; the rest grow by `1/(1-rate)`.

    Each row has a key of its own, so that its mask does not depend on the others.
    """

    def draw(key: Key[Array, ""]) -> Bool[Array, "..."]:
        return jax.random.bernoulli(key, 1.0 - rate, x.shape[1:])

    keep = jax.vmap(draw)(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
