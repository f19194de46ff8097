"""How parameters that are stored in bfloat16 or float16 take small updates.

The last one applied wins, and `nearest_rounding` is the inverse of both others. They
change nothing where parameters are float32: combine them with `param_dtype`.
"""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_optimizer, is_trainer
from maxfdl.optim.rounding import StochasticRounding
from maxfdl.train.masters import Masters

C = TypeVar("C", bound=fdl.Buildable)


def master_weights(cfg: C) -> C:
    """Keeps float32 masters of narrow parameters for the optimizer to update.

    Training then follows the masters, as if only the forward and backward pass read
    narrow parameters. Four bytes a parameter, which lie with the state of the
    optimizer. See `maxfdl.train.masters.Masters`. `nearest_rounding` is the inverse.

    Raises:
      MutationError: If there is no trainer or no optimizer.
    """
    return _with(cfg, masters=fdl.Config(Masters))


def stochastic_rounding(cfg: C) -> C:
    """Rounds updated parameters up or down at random, which needs no masters.

    The mean of the roundings is exact, so that small updates add up. See
    `maxfdl.optim.rounding.StochasticRounding`. `nearest_rounding` is the inverse.

    Raises:
      MutationError: If there is no trainer or no optimizer.
    """
    return _with(cfg, rounding=fdl.Config(StochasticRounding))


def nearest_rounding(cfg: C) -> C:
    """Rounds updated parameters to nearest, without masters: the default.

    In bfloat16, updates below 1 part in 500 of a parameter are lost.

    Raises:
      MutationError: If there is no trainer or no optimizer.
    """
    return _with(cfg)


def _with(
    cfg: C, masters: fdl.Config | None = None, rounding: fdl.Config | None = None
) -> C:
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        put(trainer, "masters", copy(masters) if masters else None)
    for optimizer in nodes_of(out, is_optimizer):
        put(optimizer, "rounding", copy(rounding) if rounding else None)
    return out
