"""DiLoCo against the standard trainer."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_trainer
from maxfdl.optim.transforms import Sgd
from maxfdl.train.diloco import DiLoCo
from maxfdl.train.fragments import Streaming
from maxfdl.train.outer import Outer
from maxfdl.train.trainer import Trainer

C = TypeVar("C", bound=fdl.Buildable)


def use_diloco(
    cfg: C,
    *,
    num_replicas: int,
    sync_period: int,
    learning_rate: float = 0.7,
    momentum: float = 0.9,
    nesterov: bool = True,
    average: Literal["equal", "tokens"] = "equal",
    fragments: int = 1,
    order: Literal["strided", "sequential"] = "strided",
    overlap: int = 0,
    mix: float = 0.0,
) -> C:
    """Trains replicas apart, and averages them every `sync_period` steps.

    Each replica has its share of the batch, and everything else that the trainer has:
    optimizer, guard, microbatches, placement. `mesh(replica=...)` gives each devices of
    its own. See `maxfdl.train.diloco.DiLoCo`. `use_standard_trainer` is the inverse.

    Args:
      cfg: The graph.
      num_replicas: How many; a multiple of the mesh axis `replica`.
      sync_period: Steps from sync to sync, H.
      learning_rate: Of the outer optimizer, which is SGD; any other rule may be set at
        `trainer.outer.rule`.
      momentum: Of the outer optimizer.
      nesterov: Whether that is Nesterov's.
      average: What a replica counts by: `equal`, or the `tokens` it has trained on.
      fragments: Parts of the model that are synced in turns, see
        `maxfdl.train.fragments.Streaming` for this and the next three.
      order: Which layers a fragment has: every so many, or neighbours.
      overlap: Steps from a sync to the step after which replicas take it over.
      mix: Share of its own weights that a replica keeps at a sync.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    rule = fdl.Config(Sgd, momentum=momentum, nesterov=nesterov)
    given = dict(fragments=fragments, order=order, overlap=overlap, mix=mix)
    streaming = {k: v for k, v in given.items() if v != getattr(Streaming, k)}
    for trainer in nodes_of(out, is_trainer):
        swap(
            trainer,
            DiLoCo,
            num_replicas=num_replicas,
            sync_period=sync_period,
            outer=fdl.Config(Outer, rule=copy(rule), learning_rate=learning_rate),
        )
        put(trainer, "average", None if average == "equal" else average)
        node = fdl.Config(Streaming, **streaming) if streaming else None
        put(trainer, "streaming", node)
    return out


def use_standard_trainer(cfg: C) -> C:
    """Trains one model, whose gradients are summed over all devices in every step.

    `use_diloco` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        swap(trainer, Trainer)
    return out
