"""Which steps are rejected, and the loss scale."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_trainer
from maxfdl.train.guard import SkipNonFinite, SkipSpikes
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
