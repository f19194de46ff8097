"""How the microbatches of a pipeline get to its first stage, and from its last one.

Outside the pipeline the devices of all stages share the rows, and each has its share of
the microbatches in slots. As the first device takes microbatch after microbatch of a
slot, those of the other devices move up. The last device gives the results, and these
move up in the same way, so that in the end each lies where its microbatch did.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.layers.schedule import Schedule, Unit
from maxfdl.sharding.line import Line
from maxfdl.sharding.sharding import Sharding


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """The slots of one device.

    Args:
      schedule: Of the pipeline.
      line: The devices.
      sharding: Of the rows on this device; None: they lie on one.
    """

    schedule: Schedule
    line: Line
    sharding: Sharding | None

    @property
    def slots(self) -> int:
        return self.schedule.microbatches // self.line.size

    def cut(self, rows: jax.Array) -> jax.Array:
        """Returns rows as [slots, rows of a microbatch, ...].

        Row i of slot j is row `i * slots + j`, so that none moves to another device.
        """
        x = rows.reshape(-1, self.slots, *rows.shape[1:]).swapaxes(0, 1)
        if self.sharding is None:
            return x
        axes = (None, "batch", "sequence", *[None] * x.ndim)[: x.ndim]
        return self.sharding.constrain(x, axes)

    def joined(self, slots: jax.Array) -> jax.Array:
        """Undoes `cut`."""
        return slots.swapaxes(0, 1).reshape(-1, *slots.shape[2:])

    def taken(
        self, waiting: Any, inputs: Any, unit: Unit, is_due: Any
    ) -> tuple[Any, Any]:
        """Takes the microbatch of `unit` into the first stage, if that is due.

        Args:
          waiting: Slots of what waits.
          inputs: [k, ...] what the stages of this device run.
          unit: Of the first stage.
          is_due: Whether it takes a microbatch.

        Returns:
          What waits then, and what the stages run.
        """
        is_first = is_due & (self.line.index == 0)

        def take(slots: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            old = _at(slots, self._slot(unit))
            slots = self._moved(slots, unit, is_due, old, self.line.from_after(old))
            return slots, inputs.at[0].set(jnp.where(is_first, old, inputs[0]))

        return _unzipped(take, waiting, inputs)

    def given(self, done: jax.Array, x: jax.Array, unit: Unit, is_due: Any):
        """Puts into the slots `done` what the last stage gave, if that is due.

        Args:
          done: Slots of results.
          x: What the last stage of this device gave.
          unit: Of the last stage of all.
          is_due: Whether `x` is a result there.
        """
        old = _at(done, self._slot(unit))
        is_last = self.line.index == self.line.size - 1
        new = jnp.where(is_last, x, self.line.from_after(old))
        return self._moved(done, unit, is_due, old, new)

    # The backward pass goes the other way: it takes what `given` gave, in that order.

    def taken_back(self, waiting: jax.Array, grads: jax.Array, unit: Unit, is_due: Any):
        """Takes the gradient of the result of `unit` into the last stage, if that is
        due. Arguments are as for `taken`."""
        is_last = is_due & (self.line.index == self.line.size - 1)
        old = _at(waiting, self._slot(unit))
        new = self.line.from_after(old)
        grads = grads.at[-1].set(jnp.where(is_last, new, grads[-1]))
        return self._moved(waiting, unit, is_due, old, new), grads

    def given_back(self, done: jax.Array, grad: jax.Array, unit: Unit, is_due: Any):
        """Puts into the slots `done` the gradient that the first stage gave, if that is
        due. Arguments are as for `given`."""
        old = _at(done, self._slot(unit))
        mine = jnp.where(self.line.index == 0, grad, old)
        return self._moved(done, unit, is_due, old, self.line.from_after(mine))

    def _slot(self, unit: Unit) -> jax.Array:
        return unit.microbatch % self.slots

    def _moved(self, slots, unit, is_due, old, new):
        return lax.dynamic_update_index_in_dim(
            slots, jnp.where(is_due, new, old), self._slot(unit), 0
        )


def _at(slots: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(slots, slot, keepdims=False)


def _unzipped(function: Callable, *trees: Any) -> tuple[Any, Any]:
    """Returns the trees of the first and of the second results of a function."""
    leaves, form = jax.tree.flatten(trees[0])
    others = [jax.tree.leaves(tree) for tree in trees[1:]]
    pairs = [function(*each) for each in zip(leaves, *others, strict=True)]
    first, second = zip(*pairs, strict=True)
    return form.unflatten(first), form.unflatten(second)
