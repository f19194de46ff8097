"""How a fresh parameter is drawn: frozen dataclasses called with a key and a shape."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Initializer:
    """Draws an array of `shape` as `init(key, shape, fan_in)`, in float32."""

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], fan_in: int
    ) -> Float[Array, "..."]:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Normal(Initializer):
    """Normal of mean 0 and standard deviation `stddev`, whatever the shape."""

    stddev: float = 0.02

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], fan_in: int
    ) -> Float[Array, "..."]:
        return self.stddev * jax.random.normal(key, tuple(shape), jnp.float32)


@dataclasses.dataclass(frozen=True)
class FanIn(Initializer):
    """Normal of standard deviation `scale / sqrt(fan_in)`: keeps activations' size.

    `fan_in` counts the inputs that one output sums over (LeCun et al. 1998).
    """

    scale: float = 1.0

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], fan_in: int
    ) -> Float[Array, "..."]:
        stddev = self.scale / math.sqrt(fan_in)
        return stddev * jax.random.normal(key, tuple(shape), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Constant(Initializer):
    """The same `value` everywhere: scales start at 1, biases at 0."""

    value: float = 0.0

    def __call__(
        self, key: Key[Array, ""], shape: Sequence[int], fan_in: int
    ) -> Float[Array, "..."]:
        return jnp.full(tuple(shape), self.value, jnp.float32)
