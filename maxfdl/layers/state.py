"""What a value that a layer changes as it runs knows of itself, as `Parameter` does."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Merge = Literal["same", "max", "sum", "mean", "last"]


@dataclasses.dataclass(frozen=True)
class StateDeclaration:
    """The declaration of one array of state.

    Args:
      shape: Shape inside one layer.
      axes: Logical name of each dim, which the sharding rules map to mesh axes.
      dtype: Type, whatever that of the parameters is.
      initial: Value of all its elements before the first step.
      merge: How the values of parts of a batch become one, see `layers.merge`.
      repeats: Layers of the stack that holds it; the array has them as leading dim.
        None outside stacks.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str = "float32"
    initial: float = 0.0
    merge: Merge = "same"
    repeats: int | None = None

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.shape if self.repeats is None else (self.repeats, *self.shape)

    @property
    def full_axes(self) -> tuple[str, ...]:
        return self.axes if self.repeats is None else ("layers", *self.axes)

    def stacked(self, repeats: int) -> "StateDeclaration":
        """Returns the declaration of `repeats` of these under one leading dim."""
        assert self.repeats is None, "a stack cannot hold a stack"
        return dataclasses.replace(self, repeats=repeats)

    def first(self) -> jax.Array:
        """Returns the value before the first step."""
        return jnp.full(self.full_shape, self.initial, self.dtype)
