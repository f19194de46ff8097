"""What training minimises: named terms, each a sum and the weight it is divided by."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.model import Output
from maxfdl.ops.cross_entropy import CrossEntropy

Batch = Mapping[str, jax.Array]


class Term(NamedTuple):
    """One part of the objective: `sum / weight`.

    The weight is data, known before the forward pass, so that sums of microbatches,
    shards and eval batches add up to the whole.
    """

    sum: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The term itself; 0 where there is nothing to average."""
        return self.sum / jnp.where(self.weight > 0, self.weight, 1.0)


@dataclasses.dataclass(frozen=True)
class NextTokenLoss:
    """Mean over all weighted tokens of the batch, in nats per token."""

    cross_entropy: CrossEntropy

    def __call__(self, output: Output, batch: Batch) -> dict[str, Term]:
        sums = self.cross_entropy(
            output.hidden, output.unembedding, batch["targets"], batch["weights"]
        )
        weight = jnp.sum(batch["weights"])
        return {name: Term(value, weight) for name, value in sums.items()}
