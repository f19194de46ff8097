"""Side results of layers, each with how several of them become one.

Microbatches, devices and logged steps are put together by this, never by a name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class SinkKey(NamedTuple):
    """Which layer left a sink, and what it calls it.

    Fields: `layer`, the names from the model down to the layer, which are also the path
    of its parameters and its state; `name`, one that the layer uses once.
    """

    layer: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return "/".join((*self.layer, self.name))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum:
    """Parts add up."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """Sums and weights add up; the result is their quotient."""

    sum: jax.Array
    weight: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max:
    """The greatest part counts."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """Whole numbers, which add up exactly."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Last:
    """The newest part counts."""

    value: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterLoad:
    """What a router of experts did, for losses, biases and metrics to read.

    Args:
      counts: [E] how often each expert was chosen.
      probability: [E] each expert's share of the scores, over tokens.
      z: Squared logsumexp of the logits, over tokens.
      sequence_balance: `ops.balance.sequence_balance`, over rows.
    """

    counts: Counts
    probability: Mean
    z: Mean
    sequence_balance: Mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadScores:
    """How high the scores of attention went.

    Args:
      highest: [H] of each head, before the softmax and any cap.
      shared: Features, the last of each query, whose keys all heads share.
    """

    highest: Max
    shared: int = dataclasses.field(default=0, metadata={"static": True})


Sink = Sum | Mean | Max | Counts | Last | RouterLoad | HeadScores
Sinks = Mapping[SinkKey, Any]


def merged(sinks: Sinks) -> dict[SinkKey, Any]:
    """Returns the sinks of a whole whose parts lie along a leading dim."""
    return {key: _merged(sink) for key, sink in sinks.items()}


def across(sinks: Sinks, axes: tuple[str, ...]) -> dict[SinkKey, Any]:
    """Returns the sinks of a whole whose parts lie along mesh axes that run apart."""
    return merged(jax.lax.all_gather(dict(sinks), axes))


def _merged(sink: Any) -> Any:
    match sink:
        case Max():
            return Max(jnp.max(sink.value, axis=0))
        case Last():
            return Last(sink.value[-1])
        case Sum() | Mean() | Counts():
            return jax.tree.map(lambda x: jnp.sum(x, axis=0), sink)
    parts = {
        field.name: getattr(sink, field.name) for field in dataclasses.fields(sink)
    }
    sinks = {name: part for name, part in parts.items() if isinstance(part, Sink)}
    return dataclasses.replace(sink, **{k: _merged(part) for k, part in sinks.items()})
