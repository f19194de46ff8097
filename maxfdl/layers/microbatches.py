"""How the microbatches of a pipeline get to its first stage, and from its last one.

Outside the pipeline the devices of all stages share the rows, and each has its share of
the microbatches in slots. As the first device takes microbatch after microbatch of a
slot, those of the other devices move up. The last device gives the results, and these
move up in the same way, so that in the end each lies where its microbatch did.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.layers.schedule import Schedule
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

    def taken(self, waiting: Any, inputs: Any, time: jax.Array) -> tuple[Any, Any]:
        """Takes a microbatch into the first stage, if one is due in this iteration.

        Args:
          waiting: Slots of what waits.
          inputs: [k, ...] what the stages of this device run.
          time: Number of the iteration.

        Returns:
          What waits then, and what the stages run.
        """
        unit = self.schedule.unit(time)
        is_due, slot = unit.repeat == 0, unit.microbatch % self.slots
        old = jax.tree.map(lambda a: _at(a, slot), waiting)
        new = self.line.from_after(old)
        is_first = is_due & (self.line.index == 0)
        inputs = jax.tree.map(
            lambda a, x: a.at[0].set(jnp.where(is_first, x, a[0])), inputs, old
        )
        waiting = jax.tree.map(
            lambda a, new, old: _put(a, slot, jnp.where(is_due, new, old)),
            waiting,
            new,
            old,
        )
        return waiting, inputs

    def given(self, done: jax.Array, x: jax.Array, time: jax.Array) -> jax.Array:
        """Puts `x`, which the last stage of this device gave, into the slots `done` if
        it is a result of the pipeline."""
        number = time - (self.schedule.stages - 1)
        repeat, microbatch = self.schedule.unit(number)
        is_due = self.schedule.is_due(number) & (repeat == self.schedule.repeats - 1)
        slot = microbatch % self.slots
        old = _at(done, slot)
        is_last = self.line.index == self.line.size - 1
        new = jnp.where(is_last, x, self.line.from_after(old))
        return _put(done, slot, jnp.where(is_due, new, old))


def _at(a: jax.Array, slot: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(a, slot, keepdims=False)


def _put(a: jax.Array, slot: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(a, value, slot, 0)
