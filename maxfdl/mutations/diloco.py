"""DiLoCo against the standard trainer."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.roles import is_trainer
from maxfdl.optim.transforms import Sgd
from maxfdl.train.diloco import DiLoCo
from maxfdl.train.exchange import Exchange, Quantized, TopK
from maxfdl.train.fragments import Streaming
from maxfdl.train.outer import Outer
from maxfdl.train.trainer import Trainer

C = TypeVar("C", bound=fdl.Buildable)
ExchangeName = Literal["float32", "int8", "e3m0", "top_k"]

_EXCHANGES: dict[str, type[Exchange] | None] = {
    "float32": None,
    "int8": Quantized,
    "e3m0": Quantized,
    "top_k": TopK,
}


def use_diloco(
    cfg: C,
    *,
    num_replicas: int,
    sync_period: int,
    learning_rate: float | None = None,
    momentum: float | None = None,
    nesterov: bool = True,
    average: Literal["equal", "tokens"] = "equal",
    fragments: int = 1,
    order: Literal["strided", "sequential"] = "strided",
    overlap: int = 0,
    mix: float = 0.0,
    eager: bool = False,
    exchange: ExchangeName = "float32",
    density: float | None = None,
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
        `trainer.outer.rule`. None is 0.7, and 1 for `top_k`.
      momentum: Of the outer optimizer; None is 0.9, and 0 for `top_k`.
      nesterov: Whether that is Nesterov's.
      average: What a replica counts by: `equal`, or the `tokens` it has trained on.
      fragments: Parts of the model that are synced in turns, see
        `maxfdl.train.fragments.Streaming` for this and the next four.
      order: Which layers a fragment has: every so many, or neighbours.
      overlap: Steps from a sync to the step after which replicas take it over.
      mix: Share of its own weights that a replica keeps at a sync.
      eager: Whether replicas move at a sync before they have heard of the others.
      exchange: How replicas send what they have learnt: in `float32`, `int8` or 4 bits
        (`e3m0`), or the largest numbers alone (`top_k`, SparseLoCo), see
        `maxfdl.train.exchange`.
      density: Of `top_k`: the share of numbers that is sent; None is 0.02.

    Raises:
      MutationError: If there is no trainer, or if an argument belongs to another
        exchange.
    """
    is_sparse = exchange == "top_k"
    if learning_rate is None:
        learning_rate = 1.0 if is_sparse else 0.7
    if momentum is None:
        momentum = 0.0 if is_sparse else 0.9
    sending = _exchange(exchange, density)
    out = copy(cfg)
    rule = fdl.Config(Sgd, momentum=momentum, nesterov=nesterov)
    given = dict(
        fragments=fragments, order=order, overlap=overlap, mix=mix, eager=eager
    )
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
        put(trainer, "exchange", copy(sending) if sending else None)
    return out


def _exchange(name: ExchangeName, density: float | None) -> fdl.Config | None:
    kind = chosen(_EXCHANGES, name, "use_diloco exchange")
    if density is not None and kind is not TopK:
        raise MutationError(
            f"use_diloco density ({density}) belongs to exchange=top_k, and exchange is"
            f" {name}; leave it out."
        )
    if kind is None:
        return None
    if kind is Quantized:
        return fdl.Config(Quantized, format=name)
    return fdl.Config(TopK, **({} if density is None else {"density": density}))


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
