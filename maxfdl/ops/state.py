"""State of layers: values that they change as they run, and that no gradient reaches.

A step may cut its batch in parts: microbatches, one after the other, and replicas, side
by side. Every part begins with the state from before the step and leaves a state of its
own; the rule in the declaration makes one of them. So the state after a step does not
depend on how its batch was cut.
"""

import dataclasses
import math
from typing import Any, ClassVar, Literal, cast

import jax
import jax.numpy as jnp

Merge = Literal["same", "max", "sum", "mean", "last"]


class Declaration:
    """What declarations of parameters and of state have in common: dims, and a place.

    They have `shape` and `axes` inside one layer, and `repeats`, the number of layers
    of the stack that holds the array, or None outside stacks; the name of the dim that
    counts them is `stack_dim`. `contracted` and
    `batched` are those of `Parameter`, and 0 for what is no kernel; `packing`, too, and
    None for what is no part of one. `dtype` is None where the model's `param_dtype`
    counts.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    role: str
    contracted: int
    batched: int
    repeats: int | None
    stack_dim: str
    dtype: Any
    packing: Any

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.shape if self.repeats is None else (self.repeats, *self.shape)

    @property
    def full_axes(self) -> tuple[str, ...]:
        return self.axes if self.repeats is None else (self.stack_dim, *self.axes)

    @property
    def size(self) -> int:
        return math.prod(self.full_shape)

    def stacked(self, repeats: int, dim: str = "layers") -> Any:
        """Returns the declaration of `repeats` of these under the leading dim `dim`."""
        assert self.repeats is None, "a stack cannot hold a stack"
        return dataclasses.replace(cast(Any, self), repeats=repeats, stack_dim=dim)


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
      backward: Whether the backward pass leaves the next value, as the gradient of this
        one: 0 where no gradient came by. One product of a forward pass may read it, for
        gradients add up.
      repeats: Layers of the stack that holds it; the array has them as leading dim.
        None outside stacks.
      stack_dim: Logical name of that dim.
    """

    role: ClassVar[str] = "state"
    contracted: ClassVar[int] = 0
    batched: ClassVar[int] = 0
    packing: ClassVar[None] = None

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: str = "float32"
    initial: float = 0.0
    merge: Merge = "same"
    backward: bool = False
    repeats: int | None = None
    stack_dim: str = "layers"

    def __post_init__(self):
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)
        if self.backward and self.merge == "same":
            raise ValueError(
                "State that the backward pass leaves is declared with merge 'same',"
                " which nothing in a step writes; declare how the values of"
                " microbatches and replicas become one: 'max', 'sum', 'mean' or 'last'."
            )

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
                return jnp.mean(parts, axis=0).astype(before.dtype)
            case "last":
                return parts[-1]


@dataclasses.dataclass(frozen=True)
class States:
    """What a step does with all state of a model, or of a part of one.

    Args:
      declared: The declarations, in a tree of the same form.
    """

    declared: Any

    def merged(self, before: Any, parts: Any) -> Any:
        """Returns the state after a batch of parts, whose arrays have a leading dim."""
        return jax.tree.map(StateDeclaration.merged, self.declared, before, parts)

    @property
    def backward(self) -> list[StateDeclaration]:
        """The declarations of the values that `of_backward` gives."""
        return [declared for declared in self._flat() if declared.backward]

    def of_backward(self, state: Any) -> list[jax.Array]:
        """Returns the values whose next ones the backward pass leaves."""
        pairs = zip(self._flat(), jax.tree.leaves(state), strict=True)
        return [value for declared, value in pairs if declared.backward]

    def with_backward(self, state: Any, values: list[jax.Array]) -> Any:
        """Returns the state with these in place of those that `of_backward` gives."""
        leaves, form = jax.tree.flatten(state)
        new, pairs = iter(values), zip(self._flat(), leaves, strict=True)
        return form.unflatten([next(new) if d.backward else old for d, old in pairs])

    def _flat(self) -> list[StateDeclaration]:
        return jax.tree.leaves(self.declared)
