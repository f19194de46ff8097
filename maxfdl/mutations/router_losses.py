"""Load balance of experts."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_loss, is_trainer
from maxfdl.mutations.trainer_updates import put_update
from maxfdl.train.auxiliary import BatchBalance, RouterZ, SequenceBalance
from maxfdl.train.router import SelectionBias

C = TypeVar("C", bound=fdl.Buildable)


def router_losses(
    cfg: C, *, sequence_balance: float = 0.0, batch_balance: float = 0.0, z: float = 0.0
) -> C:
    """Adds auxiliary losses that keep experts balanced and router logits small.

    The arguments are coefficients and replace all that the loss has; 0 leaves a term
    out, so `router_losses()` is the inverse. A model without routers is refused when
    the graph is validated. See `maxfdl.train.auxiliary`.

    Raises:
      MutationError: If there is no loss.
    """
    wanted = {
        SequenceBalance: sequence_balance,
        BatchBalance: batch_balance,
        RouterZ: z,
    }
    out = copy(cfg)
    for loss in nodes_of(out, is_loss):
        terms = [
            fdl.Config(term, coefficient=coefficient)
            for term, coefficient in wanted.items()
            if coefficient
        ]
        put(loss, "auxiliary", terms or None)
    return out


def selection_bias(cfg: C, *, rate: float) -> C:
    """Balances experts by biases that routers add when they choose experts.

    Each step changes every bias by `rate`, see `maxfdl.train.router.SelectionBias`. A
    model whose routers have no such biases is refused when the graph is validated.
    `selection_bias(rate=0.0)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        put_update(
            trainer,
            SelectionBias,
            fdl.Config(SelectionBias, rate=rate) if rate else None,
        )
    return out
