"""Batch size ramp-up, and the loss at which a run ends."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_experiment, is_trainer
from maxfdl.train.goal import LossGoal
from maxfdl.train.ramp_up import BatchRampUp

C = TypeVar("C", bound=fdl.Buildable)


def batch_ramp_up(cfg: C, *, start: int, steps: int) -> C:
    """Doubles the batch from `start` sequences to the whole size over `steps` steps.

    See `maxfdl.train.ramp_up.BatchRampUp`. `batch_ramp_up(start=0, steps=0)` is the
    inverse.

    Raises:
      MutationError: If there is no experiment.
    """
    out = copy(cfg)
    for experiment in nodes_of(out, is_experiment):
        ramp_up = fdl.Config(BatchRampUp, start=start, steps=steps)
        put(experiment, "ramp_up", ramp_up if start else None)
    return out


def stop_at_loss(cfg: C, *, loss: float | None, every: int = 100) -> C:
    """Ends the run when an evaluation finds a loss of `loss` or less.

    `every` is the number of steps between evaluations that test it. See
    `maxfdl.train.goal.LossGoal`. `stop_at_loss(loss=None)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        goal = fdl.Config(LossGoal, loss=loss, every=every)
        put(trainer, "goal", goal if loss is not None else None)
    return out
