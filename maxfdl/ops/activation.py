"""Elementwise activations by the name that published configs use."""

from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def activate(name: Activation, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Applies the activation called `name` (`gelu` is exact, `gelu_tanh` is not)."""
    return _ACTIVATIONS[name](x)
