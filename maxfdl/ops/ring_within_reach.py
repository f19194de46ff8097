"""The way of ring attention on which only the keys within reach are exchanged.

Functions here run inside a `shard_map`, where each of n devices along a mesh axis has
one shard of every row. Letters: B rows, T tokens of a shard.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.ops.attention_block import BlockAttention, merged
from maxfdl.ops.ring import Ring


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a shard does with keys of an earlier one: its first queries see its last
    keys, and there are as many of both.

    Args:
      far: Distance of the two shards; that of neighbours is 1.
      count: Keys, and queries.
      offset: Places from the first of these keys to the first query.
    """

    far: int
    count: int
    offset: int

    def queries(self, tree: Any) -> Any:
        """Returns the first tokens of [B, T, ...]."""
        return jax.tree.map(lambda x: x[:, : self.count], tree)

    def keys(self, tree: Any) -> Any:
        """Returns the last tokens of [B, T, ...]."""
        return jax.tree.map(lambda x: x[:, x.shape[1] - self.count :], tree)


@dataclasses.dataclass(frozen=True)
class WithinReach:
    """Sends each device the keys before its shard that its queries see.

    Arrays are [B, T, ...]. Where the reach is several shards, each of them sends its
    keys by itself and gets their gradients back: no device waits for another's work.

    Args:
      blocks: How the parts of attention are computed.
      ring: The devices.
      reach: Most keys that a query sees, itself the last.
    """

    blocks: BlockAttention
    ring: Ring
    reach: int

    def _steps(self, tokens: int) -> Iterator[_Step]:
        keys = self.reach - 1
        farthest = min(math.ceil(keys / tokens), self.ring.size - 1)
        for far in range(1, farthest + 1):
            between = (far - 1) * tokens
            count = min(tokens, keys - between)
            yield _Step(far, count, between + count)

    def _arguments(self, step: _Step, q, k, v, told):
        """Returns the first arguments of `blocks`, those of the keys from afar."""
        k, v, of_keys = self.ring.shift(step.keys((k, v, told)), step.far)
        q, of_queries = step.queries((q, told))
        return q, k, v, of_queries, of_keys, step.offset

    def _comes_after(self, step: _Step) -> jax.Array:
        """Whether there is a shard so far back in the row."""
        return self.ring.number >= step.far

    def forward(self, q, k, v, told):
        seen = self.blocks.forward(q, k, v, told, told, 0)
        for step in self._steps(q.shape[1]):
            arguments = self._arguments(step, q, k, v, told)
            more = functools.partial(self._with_more, arguments)
            old = step.queries(seen)
            new = lax.cond(self._comes_after(step), more, lambda old: old, old)
            seen = jax.tree.map(
                lambda x, new: x.at[:, : new.shape[1]].set(new), seen, new
            )
        return seen

    def _with_more(self, arguments: Any, seen):
        return merged(seen, self.blocks.forward(*arguments))

    def _gradients(self, arguments: Any, whole, none):
        return self.blocks.backward(*arguments, whole=whole)

    def backward(self, q, k, v, told, whole):
        tokens = q.shape[1]
        d_q, d_k, d_v = self.blocks.backward(q, k, v, told, told, 0, whole)
        for step in self._steps(tokens):
            arguments = self._arguments(step, q, k, v, told)
            run = functools.partial(self._gradients, arguments, step.queries(whole))
            none = tuple(jnp.zeros(x.shape, jnp.float32) for x in arguments[:3])
            meets = self._comes_after(step)
            of_q, *of_keys = lax.cond(meets, run, lambda none: none, none)
            of_k, of_v = self.ring.shift(of_keys, -step.far)
            d_q = d_q.at[:, : step.count].add(of_q)
            d_k = d_k.at[:, tokens - step.count :].add(of_k)
            d_v = d_v.at[:, tokens - step.count :].add(of_v)
        return d_q, d_k, d_v
