"""Gradient accumulation."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.roles import is_trainer
from maxfdl.train.gradients import Accumulate, WholeBatch

C = TypeVar("C", bound=fdl.Buildable)


def gradient_accumulation(cfg: C, *, steps: int) -> C:
    """Splits each batch into `steps` microbatches, whose gradients are added up.

    Same gradients up to the order of sums, except for those of `batch_balance` (see
    `router_losses`), which is taken per microbatch; the memory of activations falls by
    the factor `steps`. `gradient_accumulation(steps=1)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        trainer.gradients = (
            fdl.Config(WholeBatch)
            if steps == 1
            else fdl.Config(Accumulate, steps=steps)
        )
    return out
