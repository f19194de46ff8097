"""Losses: named terms, each a sum divided by a weight."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.batch import NEXT_TOKENS, Fields
from maxfdl.model import Output
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.later import has_later, later
from maxfdl.ops.mask import Places
from maxfdl.train.auxiliary import AuxiliaryLoss, Psum

Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]
Outputs = Mapping[str, Output]

STUDENT = "student"
"""Name of the network that is trained, among those whose outputs a loss gets."""


class Term(NamedTuple):
    """One part of the objective: `sum / weight`.

    The weight is data, known before the forward pass, so that sums of microbatches,
    shards and eval batches add up to the whole.
    """

    sum: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The term: sum over weight; 0 where the weight is 0."""
        return self.sum / jnp.where(self.weight > 0, self.weight, 1.0)


def total(sums: Sums, weights: Sums) -> jax.Array:
    """Returns the objective: the terms added up."""
    return sum((Term(sums[k], weights[k]).mean for k in sums), jnp.zeros(()))


@dataclasses.dataclass(frozen=True)
class LaterTokenLoss:
    """`coefficient / D sum_k L_k` for a model that predicts D tokens beyond the next.

    Multi-token prediction. L_k is the mean cross-entropy of the token k + 1 places
    ahead, over the places whose document goes on that far, with the weights of the
    tokens predicted. DeepSeek-V3, https://arxiv.org/abs/2412.19437, equations 24 and
    25. Terms `later_token_1` to `later_token_D`; each costs as much as the main term.

    Args:
      coefficient: 0.3 in DeepSeek-V3's first 10T tokens, then 0.1.
    """

    coefficient: float = 0.3

    @staticmethod
    def check_config(node):
        if node.coefficient <= 0:
            yield (
                f"LaterTokenLoss coefficient ({node.coefficient}) must be positive;"
                " drop the term instead."
            )

    def token_weights(self, batch: Batch, step: int) -> jax.Array:
        """Returns [B, T], the weight of the prediction `step` tokens past the next."""
        known = has_later(Places(batch["positions"], batch["segment_ids"]), step)
        return jnp.where(known, later(batch["weights"], step), 0.0)

    def weights(self, batch: Batch, count: int) -> Sums:
        return {
            f"later_token_{k}": jnp.sum(self.token_weights(batch, k))
            for k in range(1, count + 1)
        }

    def sums(self, output: Output, batch: Batch, cross_entropy: CrossEntropy) -> Sums:
        plain = dataclasses.replace(cross_entropy, z_loss=0.0)
        share = self.coefficient / max(len(output.ahead), 1)
        sums = {}
        for k, hidden in enumerate(output.ahead, 1):
            targets, weights = later(batch["targets"], k), self.token_weights(batch, k)
            terms = plain(hidden, output.unembedding, targets, weights)
            sums[f"later_token_{k}"] = share * terms["cross_entropy"]
        return sums


class Loss:
    """Base: computes named terms from the outputs of networks for a batch.

    `fields` declares what it reads of a batch besides the inputs of the model, which
    the data must provide.
    """

    fields: ClassVar[Fields] = NEXT_TOKENS

    def weights(self, batch: Batch, later_tokens: int) -> Sums:
        """Returns what each term is divided by, from the data alone.

        Args:
          batch: All rows.
          later_tokens: How many tokens beyond the next the model predicts.
        """
        raise NotImplementedError

    def sums(self, outputs: Outputs, batch: Batch, psum: Psum) -> Sums:
        """Returns each term's sum; those of the parts of a batch add up.

        Args:
          outputs: Of the forward passes, by the name of the network: `STUDENT` is the
            one that is trained.
          batch: Its rows.
          psum: Sums a number over the manual mesh axes.
        """
        raise NotImplementedError

    def __call__(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """Returns the terms of a batch that is taken whole."""
        sums = self.sums(outputs, batch, lambda x: x)
        weights = self.weights(batch, len(outputs[STUDENT].ahead))
        return {name: Term(sums[name], weights[name]) for name in sums}

    def notes(self, microbatches: int) -> Iterator[str]:
        """Yields sentences about behaviour that a user may not expect."""
        yield from ()


@dataclasses.dataclass(frozen=True)
class NextTokenLoss(Loss):
    """Mean over all weighted tokens of the batch, in nats per token.

    Args:
      cross_entropy: The loss of tokens.
      later_tokens: The terms of multi-token prediction; None has none.
      auxiliary: Auxiliary losses, which are computed from sinks.
    """

    cross_entropy: CrossEntropy
    later_tokens: LaterTokenLoss | None = None
    auxiliary: Sequence[AuxiliaryLoss] = ()

    @staticmethod
    def check_config(node):
        names = [each.made.name for each in node.auxiliary]
        if len(set(names)) < len(names):
            yield f"NextTokenLoss auxiliary ({', '.join(names)}) must each come once."

    def weights(self, batch: Batch, later_tokens: int) -> Sums:
        weights = {"cross_entropy": jnp.sum(batch["weights"])}
        if self.later_tokens is not None:
            weights |= self.later_tokens.weights(batch, later_tokens)
        if self.cross_entropy.z_loss:
            weights["z_loss"] = weights["cross_entropy"]
        return weights | {each.name: each.weight(batch) for each in self.auxiliary}

    def sums(self, outputs: Outputs, batch: Batch, psum: Psum) -> Sums:
        output = outputs[STUDENT]
        sums = self.cross_entropy(
            output.hidden, output.unembedding, batch["targets"], batch["weights"]
        )
        if self.later_tokens is not None:
            sums |= self.later_tokens.sums(output, batch, self.cross_entropy)
        return sums | {
            each.name: each.sum(output.sinks, psum) for each in self.auxiliary
        }

    def notes(self, microbatches: int) -> Iterator[str]:
        for term in self.auxiliary:
            if microbatches > 1 and not term.adds_up:
                yield (
                    f"the loss term {term.name} is taken per microbatch: it is the mean"
                    f" over {microbatches} of them, and not that of the whole batch."
                )
