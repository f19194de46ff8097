"""Attention of rows that a mesh cuts along their tokens (context parallelism).

Letters: B rows, T tokens, H query heads, G key-value heads, K width of a query and key.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from maxfdl.errors import UserError
from maxfdl.ops.attention_block import BlockAttention
from maxfdl.ops.mask import Mask
from maxfdl.ops.ring import Cut, names_of
from maxfdl.ops.ring_attention import ring_attention, ring_highest_scores

Attend = Callable[[jax.Array, jax.Array, jax.Array, Mask, jax.Array | None], jax.Array]
Highest = Callable[[jax.Array, jax.Array, Mask], jax.Array]


class ContextParallel(abc.ABC):
    """How devices that share the tokens of a row attend."""

    @abc.abstractmethod
    def attend(self, cut: Cut, attend: Attend, blocks: BlockAttention | None) -> Attend:
        """Returns attention for arrays that are cut so.

        Args:
          cut: How the arrays lie.
          attend: Attention of whole rows on one device.
          blocks: Parts of the same attention; None if there is no kernel for them.
        """

    @abc.abstractmethod
    def highest_scores(self, cut: Cut, highest: Highest) -> Highest:
        """Returns what gives the highest score of each head, see `DotProductAttention`.

        Args:
          cut: How the arrays lie.
          highest: Of queries and keys on one device.
        """


@dataclasses.dataclass(frozen=True)
class RingAttention(ContextParallel):
    """Keys and values go round the devices, see `ops.ring_attention`.

    Args:
      order: `zigzag` gives each device an early and a late half of a shard, so that all
        have the same work under a causal mask: a sequence must be a multiple of twice
        the devices. `plain` leaves the shards as they are.
    """

    order: Literal["zigzag", "plain"] = "zigzag"

    def attend(self, cut: Cut, attend: Attend, blocks: BlockAttention | None) -> Attend:
        if blocks is None:
            raise UserError(
                "RingAttention needs the parts of attention, which DotProductAttention"
                " gives with implementation xla, and tokamax on a TPU; use one of them,"
                " auto, or context_parallel(kind='ulysses')."
            )
        ring = cut.ring

        def run(q, k, v, mask, sinks):
            tokens = q.shape[1]
            reach = mask.rule.reach(tokens)
            # Within a window the work is balanced already.
            zigzag = self.order == "zigzag" and reach == tokens
            _check_tokens(tokens, ring.size, zigzag)

            def on_shard(q, k, v, told, sinks):
                options = dict(reach=reach, zigzag=zigzag)
                return ring_attention(blocks, ring, q, k, v, told, sinks, **options)

            specs = (*[cut.features] * 3, cut.places, PartitionSpec(cut.heads))
            spread = cut.run(on_shard, specs, cut.features)
            return spread(q, k, v, blocks.told(mask), sinks)

        return run

    def highest_scores(self, cut: Cut, highest: Highest) -> Highest:
        def run(q, k, mask):
            reach = mask.rule.reach(q.shape[1])

            def on_shard(q, k, mask):
                found = ring_highest_scores(highest, cut.ring, q, k, mask, reach=reach)
                return cut.highest(found)

            specs = (*[cut.features] * 2, cut.places)
            return cut.run(on_shard, specs, PartitionSpec(cut.heads))(q, k, mask)

        return run


@dataclasses.dataclass(frozen=True)
class UlyssesAttention(ContextParallel):
    """Devices exchange tokens for heads: each attends whole rows, with some heads.

    Jacobs et al. 2023, https://arxiv.org/abs/2309.14509. Four all-to-alls, of queries,
    keys, values and outputs; of a shard, each device sends all but its own part. The
    devices must divide the query heads. Key-value heads are repeated until they do.
    """

    def attend(self, cut: Cut, attend: Attend, blocks: BlockAttention | None) -> Attend:
        def run(q, k, v, mask, sinks):
            self._check_heads(cut, q.shape[2])

            def on_shard(q, k, v, mask, sinks):
                q, k, v, mask = self._by_heads(cut, (q, k, v), mask)
                out = attend(q, k, v, mask, sinks)
                return lax.all_to_all(out, cut.tokens, 1, 2, tiled=True)

            heads = PartitionSpec(self._cut_heads(cut))
            specs = (*[cut.features] * 3, cut.places, heads)
            return cut.run(on_shard, specs, cut.features)(q, k, v, mask, sinks)

        return run

    def highest_scores(self, cut: Cut, highest: Highest) -> Highest:
        def run(q, k, mask):
            self._check_heads(cut, q.shape[2])

            def on_shard(q, k, mask):
                q, k, mask = self._by_heads(cut, (q, k), mask)
                found = highest(q, k, mask)
                return found if cut.rows is None else lax.pmax(found, cut.rows)

            specs = (*[cut.features] * 2, cut.places)
            heads = PartitionSpec(self._cut_heads(cut))
            return cut.run(on_shard, specs, heads)(q, k, mask)

        return run

    def _by_heads(self, cut: Cut, arrays: tuple, mask: Mask) -> tuple:
        """Returns arrays and mask of whole rows, with the heads of this device."""
        size = cut.ring.size

        def exchanged(x: Float[Array, "B T G K"]) -> jax.Array:
            heads = x.shape[2]
            repeated = jnp.repeat(x, math.lcm(heads, size) // heads, axis=2)
            return lax.all_to_all(repeated, cut.tokens, 2, 1, tiled=True)

        def whole(x):
            return lax.all_gather(x, cut.tokens, axis=1, tiled=True)

        return *map(exchanged, arrays), jax.tree.map(whole, mask)

    def _cut_heads(self, cut: Cut) -> tuple[str, ...]:
        return (*names_of(cut.heads or ()), *names_of(cut.tokens))

    def _check_heads(self, cut: Cut, heads: int) -> None:
        parts = cut.size(self._cut_heads(cut))
        if heads % parts:
            axes = " x ".join(self._cut_heads(cut))
            raise UserError(
                f"UlyssesAttention cuts query heads ({heads}) by mesh axis {axes}"
                f" ({parts}), which must divide them; take a smaller mesh axis, or"
                " context_parallel(kind='ring')."
            )


def _check_tokens(tokens: int, size: int, zigzag: bool) -> None:
    parts = 2 * size if zigzag else size
    if tokens % parts:
        way = ", or take context_parallel(order='plain')" if not tokens % size else ""
        raise UserError(
            f"RingAttention cuts sequences of {tokens} tokens into {parts} parts for"
            f" {size} devices, and must cut them evenly; change sequence_length or"
            f" mesh.context{way}."
        )
