"""When each stage of a pipeline runs what.

Letters: S stages, R repeats, M microbatches.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

Numbers = jax.Array | np.ndarray


class Unit(NamedTuple):
    """What a stage runs in one iteration: some of its layers on one microbatch.

    Args:
      repeat: How often the microbatch has passed through all stages before.
      microbatch: Its number.
    """

    repeat: Any
    microbatch: Any


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which unit each stage runs in each iteration.

    A stage runs its units in an order that is the same for all stages; the unit that
    stage s runs in iteration t has the number `t - s`. Microbatches go in groups of S,
    and a group passes through all stages R times before the next one enters, so that
    what leaves the last stage is what the first runs next. There are `M R + S - 1`
    iterations. In S - 1 of them a stage has no unit to run: it computes with whatever
    lies there, and the result is dropped.

    Args:
      stages: S.
      microbatches: M, a multiple of S if R is above 1.
      repeats: R, how often a microbatch passes through all stages.
    """

    stages: int
    microbatches: int
    repeats: int

    @property
    def units(self) -> int:
        """Units of one stage."""
        return self.microbatches * self.repeats

    @property
    def iterations(self) -> int:
        return self.units + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of the iterations in which a stage has no unit to run."""
        return (self.stages - 1) / self.iterations

    def unit(self, number: Numbers) -> Unit:
        """Returns a unit by its number; of one that is not due, the nearest."""
        number = number.clip(0, self.units - 1)
        group, within = divmod(number, self.stages * self.repeats)
        repeat, place = divmod(within, self.stages)
        return Unit(repeat, group * self.stages + place)

    def number(self, unit: Unit) -> Any:
        """Returns the number of a unit."""
        group, place = divmod(unit.microbatch, self.stages)
        return (group * self.repeats + unit.repeat) * self.stages + place

    def enters(self, number: Numbers) -> tuple[Unit, Any]:
        """Returns the unit of the first stage of that number, and whether it takes a
        new microbatch."""
        unit = self.unit(number)
        return unit, self.is_due(number) & (unit.repeat == 0)

    def leaves(self, number: Numbers) -> tuple[Unit, Any]:
        """Returns the unit of the last stage of that number, and whether it is the last
        of its microbatch."""
        unit = self.unit(number)
        return unit, self.is_due(number) & (unit.repeat == self.repeats - 1)

    def is_due(self, number: Numbers) -> Any:
        """Says whether there is a unit of this number."""
        return (number >= 0) & (number < self.units)

    def by_unit(self, left: jax.Array, stage: jax.Array | int) -> jax.Array:
        """Returns [M, R, ...] what the units of `stage` left.

        Args:
          left: [iterations, ...] what it left in each iteration.
          stage: s.
        """
        x = lax.dynamic_slice_in_dim(left, stage, self.units)
        if self.repeats == 1:
            return x[:, None]
        x = x.reshape(-1, self.repeats, self.stages, *x.shape[1:])
        return x.swapaxes(1, 2).reshape(-1, self.repeats, *x.shape[3:])
