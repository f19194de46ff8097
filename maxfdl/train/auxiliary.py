"""Auxiliary losses: terms of the objective that are computed from sinks of layers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from maxfdl.layers.sinks import RouterLoad, SinkKey, Sinks
from maxfdl.ops import balance
from maxfdl.ops.mask import Places

Psum = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class AuxiliaryLoss:
    """A term `coefficient * sum(sinks) / weight(batch)`.

    Args:
      coefficient: Its share of the objective.
    """

    name: ClassVar[str]
    adds_up: ClassVar[bool] = True
    """Whether the terms of the parts of a batch add up to that of the whole."""
    coefficient: float

    @staticmethod
    def check_config(node):
        if node.coefficient <= 0:
            yield (
                f"AuxiliaryLoss coefficient ({node.coefficient}) must be positive; drop"
                " the term instead."
            )

    def weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Returns what the sum is divided by, from the data alone."""
        raise NotImplementedError

    def sum(self, sinks: Sinks, psum: Psum) -> jax.Array:
        """Returns the term's sum over the tokens or rows of these sinks, and layers.

        Args:
          sinks: Side results of layers.
          psum: Sums a number over the manual mesh axes.
        """
        raise NotImplementedError


def router_loads(sinks: Sinks) -> dict[SinkKey, RouterLoad]:
    """Returns the loads of all routers; one of a stack holds those of all repeats."""
    return {key: x for key, x in sinks.items() if isinstance(x, RouterLoad)}


@dataclasses.dataclass(frozen=True)
class RouterLoss(AuxiliaryLoss):
    """A term computed from the loads of routers of experts."""

    @classmethod
    def check_in(cls, node, root):
        if not any(getattr(each, "router", None) for each in root.model.below()):
            yield (
                f"The loss has a term {cls.name}, of routers of experts, and this model"
                " has none: apply router_losses() to drop it."
            )

    def loads(self, sinks: Sinks) -> list[RouterLoad]:
        """Returns what all routers left."""
        return [*router_loads(sinks).values()]


@dataclasses.dataclass(frozen=True)
class SequenceBalance(RouterLoss):
    """Load balance within each row, summed over layers: DeepSeek-V3's loss.

    It is a mean over rows, so microbatches and meshes do not change it.
    """

    name = "sequence_balance"

    def weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        rows = jnp.any(_counted(batch), axis=1)
        return jnp.sum(rows, dtype=jnp.float32)

    def sum(self, sinks: Sinks, psum: Psum) -> jax.Array:
        sums = [jnp.sum(load.sequence_balance.sum) for load in self.loads(sinks)]
        return self.coefficient * sum(sums, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class RouterZ(RouterLoss):
    """Squared logsumexp of router logits, summed over layers: ST-MoE's z-loss."""

    name = "router_z"

    def weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.sum(_counted(batch), dtype=jnp.float32)

    def sum(self, sinks: Sinks, psum: Psum) -> jax.Array:
        sums = [jnp.sum(load.z.sum) for load in self.loads(sinks)]
        return self.coefficient * sum(sums, jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class BatchBalance(RouterLoss):
    """Load balance over all tokens and layers together: Switch's and Mixtral's loss.

    It is a product of two means over a batch: how often each expert is chosen, and its
    mean probability. The first has no gradient, so it is counted over all devices
    before the product, and the loss is the same on every mesh. With gradient
    accumulation each microbatch has a product of its own, and the loss is their mean,
    weighted by tokens, which is not that of the whole batch.
    """

    name = "batch_balance"
    adds_up = False

    def weight(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.sum(_counted(batch), dtype=jnp.float32)

    def sum(self, sinks: Sinks, psum: Psum) -> jax.Array:
        loads = self.loads(sinks)
        counts = [jnp.atleast_2d(psum(load.counts.value)) for load in loads]
        tokens = [jnp.atleast_1d(psum(load.probability.weight)) for load in loads]
        shares = [jnp.atleast_2d(load.probability.sum) for load in loads]
        of_layers = [jnp.concatenate(parts) for parts in (counts, shares, tokens)]
        return self.coefficient * tokens[0][0] * balance.load_balance(*of_layers)


def _counted(batch: Mapping[str, jax.Array]) -> jax.Array:
    return balance.counted(Places(batch["positions"], batch["segment_ids"]))
