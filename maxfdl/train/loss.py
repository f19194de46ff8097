"""What training minimises: named terms, each a sum and the weight it is divided by."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.model import Output
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.train.auxiliary import AuxiliaryLoss

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]


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


def total(sums: Sums, weights: Sums) -> jax.Array:
    """Returns the objective: the terms added up."""
    return sum((Term(sums[k], weights[k]).mean for k in sums), jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class NextTokenLoss:
    """Mean over all weighted tokens of the batch, in nats per token.

    Args:
      cross_entropy: The loss of tokens.
      auxiliary: Terms that are added, of what layers left as sinks.
    """

    cross_entropy: CrossEntropy
    auxiliary: Sequence[AuxiliaryLoss] = ()

    def weights(self, batch: Batch) -> Sums:
        """Returns what each term is divided by, from the data alone."""
        weights = {"cross_entropy": jnp.sum(batch["weights"])}
        if self.cross_entropy.z_loss:
            weights["z_loss"] = weights["cross_entropy"]
        return weights | {each.name: each.weight(batch) for each in self.auxiliary}

    def sums(self, output: Output, batch: Batch) -> Sums:
        """Returns each term's sum; those of the parts of a batch add up."""
        sums = self.cross_entropy(
            output.hidden, output.unembedding, batch["targets"], batch["weights"]
        )
        return sums | {each.name: each.sum(output.sinks) for each in self.auxiliary}

    def __call__(self, output: Output, batch: Batch) -> dict[str, Term]:
        sums, weights = self.sums(output, batch), self.weights(batch)
        return {name: Term(sums[name], weights[name]) for name in sums}
