"""Which steps are rejected, and the loss scale."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_trainer
from maxfdl.train.guard import GoBack, SkipNonFinite, SkipSpikes
from maxfdl.train.loss_scale import LossScale

C = TypeVar("C", bound=fdl.Buildable)


def skip_spikes(cfg: C, *, window: int = 128, deviations: float = 6.0) -> C:
    """Skips steps whose loss or gradient norm is far above recent ones.

    The limit is `deviations` standard deviations above the mean of the last `window`
    steps. See `maxfdl.train.guard.SkipSpikes`. `skip_spikes(window=0)` is the
    inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        if window:
            swap(trainer.guard, SkipSpikes, window=window, deviations=deviations)
        else:
            swap(trainer.guard, SkipNonFinite)
    return out


def go_back(cfg: C, *, steps: int = 0, times: int = 3) -> C:
    """Goes back to an earlier checkpoint after too many skipped steps in a row.

    The data goes on, so that what came between is passed over. See
    `maxfdl.train.guard.GoBack`. `go_back(times=0)` is the inverse, which ends the run.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        policy = fdl.Config(GoBack, steps=steps, times=times)
        put(trainer.guard, "then", policy if times else None)
    return out


def loss_scale(cfg: C, *, initial: float = 2.0**16, growth_interval: int = 2000) -> C:
    """Scales the loss while gradients are computed, which float16 needs.

    The scale starts at `initial` and adapts to overflows. See
    `maxfdl.train.loss_scale.LossScale`. `loss_scale(initial=0.0)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        scale = fdl.Config(LossScale, initial=initial, growth_interval=growth_interval)
        put(trainer.guard, "loss_scale", scale if initial else None)
    return out
