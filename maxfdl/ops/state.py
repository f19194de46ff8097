"""State of layers: values that they change as they run, and that no gradient reaches.

A step may cut its batch in parts: microbatches, one after the other, and replicas, side
by side. Every part begins with the state from before the step and leaves a state of its
own; the rule in the declaration makes one of them. So the state after a step does not
depend on how its batch was cut.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp

Merge = Literal["same", "max", "sum", "mean", "last"]


class Declaration:
    """What declarations of parameters and of state have in common: dims, and a place.

    They have `shape` and `axes` inside one layer, and `repeats`, the number of layers
    of the stack that holds the array, or None outside stacks. `contracted` and
    `batched` are those of `Parameter`, and 0 for what is no kernel.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    role: str
    contracted: int
    batched: int
    repeats: int | None

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.shape if self.repeats is None else (self.repeats, *self.shape)

    @property
    def full_axes(self) -> tuple[str, ...]:
        return self.axes if self.repeats is None else ("layers", *self.axes)

    @property
    def size(self) -> int:
        return math.prod(self.full_shape)

    def stacked(self, repeats: int) -> Any:
        """Returns the declaration of `repeats` of these under one leading dim."""
        assert self.repeats is None, "a stack cannot hold a stack"
        return dataclasses.replace(cast(Any, self), repeats=repeats)


@dataclasses.dataclass(frozen=True)
class StateDeclaration(Declaration):
    """The declaration of one array of state.

    Args:
      shape: Shape inside one layer.
      axes: Logical name of each dim, which the sharding rules map to mesh axes.
      dtype: Type, whatever that of the parameters is.
      initial: Value of all its elements before the first step.
      merge: How the values that the parts of a batch leave become one. `max`: the
        greatest. `sum`: what each added to the value from before the step, added up.
        `mean`: their mean, for parts have equally many rows. `last`: that of the last
        rows. `same`: layers only read it; an update of the trainer may write it.
      repeats: Layers of the stack that holds it; the array has them as leading dim.
        None outside stacks.
    """

    role: ClassVar[str] = "state"
    contracted: ClassVar[int] = 0
    batched: ClassVar[int] = 0

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str = "float32"
    initial: float = 0.0
    merge: Merge = "same"
    repeats: int | None = None

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)

    def first(self) -> jax.Array:
        """Returns the value before the first step."""
        return jnp.full(self.full_shape, self.initial, self.dtype)

    def merged(self, before: jax.Array, parts: jax.Array) -> jax.Array:
        """Returns one value of those of all parts, which lie along a leading dim.

        Args:
          before: The value that each part began with.
          parts: The values that they left.
        """
        match self.merge:
            case "same":
                return before
            case "max":
                return jnp.max(parts, axis=0)
            case "sum":
                return before + jnp.sum(parts - before, axis=0, dtype=before.dtype)
            case "mean":
                return jnp.mean(parts, axis=0)
            case "last":
                return parts[-1]


def merged_state(
    declared: Mapping[str, Any], before: Mapping[str, Any], parts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the state after a batch of parts, whose arrays have a leading dim.

    The three are trees of the same form: declarations, values, and values of all parts.
    """
    return jax.tree.map(StateDeclaration.merged, dict(declared), before, parts)
