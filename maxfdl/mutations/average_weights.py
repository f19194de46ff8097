"""Which weights are evaluated."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.roles import is_trainer
from maxfdl.mutations.trainer_updates import put_update
from maxfdl.train.weight_average import WeightAverage

C = TypeVar("C", bound=fdl.Buildable)


def average_weights(cfg: C, *, decay: float = 0.999) -> C:
    """Evaluates and exports a running average of the weights.

    The average is of the weights that are trained, with `use_schedule_free` too. See
    `maxfdl.train.weight_average.WeightAverage`. `average_weights(decay=0.0)` is the
    inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        node = fdl.Config(WeightAverage, decay=decay) if decay else None
        put_update(trainer, WeightAverage, node)
    return out
