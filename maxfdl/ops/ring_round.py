"""The way of ring attention on which the keys of every shard come by every device.

Functions here run inside a `shard_map`, where each of n devices along a mesh axis has
one shard of every row. Letters: B rows, T tokens of a shard, P pieces of a shard, L
tokens of a piece.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maxfdl.ops.attention_block import BlockAttention, merged
from maxfdl.ops.ring import Ring


def to_pairs(tree: Any, ring: Ring) -> Any:
    """Gives each device an early and a late half of a shard: [B, T] to [B, 2, T / 2].

    Of causal attention, every device then has the same work at every step: cut into 2n,
    a row is spread so that each device has the parts p and 2n - 1 - p (the zigzag order
    of Llama 3, https://arxiv.org/abs/2407.21783, section 3.3.2). A device keeps its
    first half and exchanges the second with its mirror image, so that each array
    crosses the wire by half.
    """
    keeps_early = 2 * ring.number < ring.size

    def pair(x):
        half = x.shape[1] // 2
        kept, got = x[:, :half], ring.mirrored(x[:, half:])
        pairs = (kept, got), (got, kept)
        return jnp.stack([jnp.where(keeps_early, *each) for each in pairs], axis=1)

    return jax.tree.map(pair, tree)


def from_pairs(tree: Any, ring: Ring) -> Any:
    """The inverse of `to_pairs`."""
    keeps_early = 2 * ring.number < ring.size

    def shard(x):
        kept, given = (jnp.where(keeps_early, x[:, i], x[:, 1 - i]) for i in (0, 1))
        return jnp.concatenate([kept, ring.mirrored(given)], axis=1)

    return jax.tree.map(shard, tree)


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Pieces of queries that attend to as many pieces of keys, each pair apart.

    Args:
      queries, keys: Numbers of the pieces, which may be traced.
      offset: See `BlockAttention`.
      happens: Whether it does on this device; None: on all.
    """

    queries: Sequence[Any]
    keys: Sequence[Any]
    offset: int | None = None
    happens: jax.Array | None = None

    def run(self, function: Callable, *state: Any) -> Any:
        """Returns `function(*state)`, or the state as it is."""
        if self.happens is None:
            return function(*state)
        return lax.cond(self.happens, function, lambda *state: state, *state)


def in_order(ring: Ring, far: Any) -> list[Meeting]:
    """What a shard and the one `far` places before it, going round, have to do."""
    if isinstance(far, int) and far == 0:
        return [Meeting([0], [0], offset=0)]
    return [Meeting([0], [0], happens=ring.number >= far)]


def in_pairs(ring: Ring, far: Any) -> list[Meeting]:
    """The same for pairs of an early and a late half, as `to_pairs` makes them.

    A late half sees every early one. The other meeting is that of both early halves, if
    the early keys come first, and else of both late ones.
    """
    if isinstance(far, int) and far == 0:
        return [Meeting([0, 1], [0, 1], offset=0), Meeting([1], [0])]

    def early(number):
        return jnp.minimum(2 * number, 2 * ring.size - 1 - 2 * number)

    here, there = ring.number, (ring.number - far) % ring.size
    which = jnp.where(early(there) < early(here), 0, 1)
    return [Meeting([1, which], [0, which])]


@dataclasses.dataclass(frozen=True)
class Round:
    """Sends the keys of every shard to every device: arrays are [B, P, L, ...].

    The next keys are on their way while a device computes with those that it has. All
    steps but the first and the last are one loop.

    Args:
      blocks: How the parts of attention are computed.
      ring: The devices.
      meetings: What there is to do with the keys of the shard that is so far back.
    """

    blocks: BlockAttention
    ring: Ring
    meetings: Callable[[Ring, Any], list[Meeting]]

    def forward(self, q, k, v, told):
        rows, pieces, tokens, heads, _ = q.shape
        shape = rows, pieces, tokens, heads
        state = (
            jnp.zeros((*shape, v.shape[-1]), jnp.float32),
            jnp.full(shape, -jnp.inf, jnp.float32),
        )

        def meet(state, keys, far):
            for meeting in self.meetings(self.ring, far):
                attend = functools.partial(self._attend, meeting, q, told, keys)
                state = meeting.run(attend, *state)
            return state

        def step(carry, far):
            state, keys = carry
            return (meet(state, keys, far), self.ring.shift(keys, 1)), None

        keys = k, v, told
        state, keys = meet(state, keys, 0), self.ring.shift(keys, 1)
        last = self.ring.size - 1
        (state, keys), _ = lax.scan(step, (state, keys), jnp.arange(1, last))
        return meet(state, keys, last)

    def _attend(self, meeting, q, told, keys, out, normaliser):
        """Adds a meeting to what the queries have seen so far."""
        k, v, of_keys = (_taken(x, meeting.keys) for x in keys)
        new = self.blocks.forward(
            *(_taken(q, meeting.queries), k, v),
            *(_taken(told, meeting.queries), of_keys, meeting.offset),
        )
        parts = [jnp.split(x, len(meeting.queries)) for x in new]
        for piece, *part in zip(meeting.queries, *parts, strict=True):
            old = out[:, piece], normaliser[:, piece]
            seen, of_seen = merged(old, tuple(part))
            out = lax.dynamic_update_index_in_dim(out, seen, piece, 1)
            normaliser = lax.dynamic_update_index_in_dim(normaliser, of_seen, piece, 1)
        return out, normaliser

    def backward(self, q, k, v, told, whole):
        d_q, *d_keys = (jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))

        def meet(d_q, d_keys, keys, far):
            for meeting in self.meetings(self.ring, far):
                add = functools.partial(self._gradients, meeting, q, told, whole, keys)
                d_q, *d_keys = meeting.run(add, d_q, *d_keys)
            return d_q, d_keys

        def step(carry, far):
            d_q, d_keys, keys = carry
            # They were left by the device before, which had these keys a step ago.
            d_keys, later = self.ring.shift((d_keys, keys), 1)
            d_q, d_keys = meet(d_q, d_keys, keys, far)
            return (d_q, d_keys, later), None

        keys = k, v, told
        later = self.ring.shift(keys, 1)
        d_q, d_keys = meet(d_q, d_keys, keys, 0)
        last = self.ring.size - 1
        (d_q, d_keys, keys), _ = lax.scan(
            step, (d_q, d_keys, later), jnp.arange(1, last)
        )
        d_q, d_keys = meet(d_q, self.ring.shift(d_keys, 1), keys, last)
        # Nothing is added any more, and they may be rounded for the way home.
        d_k, d_v = d_keys[0].astype(k.dtype), d_keys[1].astype(v.dtype)
        return d_q, *self.ring.shift((d_k, d_v), 1)

    def _gradients(self, meeting, q, told, whole, keys, d_q, d_k, d_v):
        """Adds what a meeting contributes."""
        k, v, of_keys = (_taken(x, meeting.keys) for x in keys)
        of_q, of_k, of_v = self.blocks.backward(
            *(_taken(q, meeting.queries), k, v),
            *(_taken(told, meeting.queries), of_keys, meeting.offset),
            _taken(whole, meeting.queries),
        )
        d_q = _added(d_q, of_q, meeting.queries)
        return d_q, _added(d_k, of_k, meeting.keys), _added(d_v, of_v, meeting.keys)


def _taken(tree: Any, pieces: Sequence[Any]) -> Any:
    """Returns pieces of [B, P, L, ...] as rows of [len(pieces) B, L, ...]."""

    def take(x):
        parts = [lax.dynamic_index_in_dim(x, p, 1, keepdims=False) for p in pieces]
        return jnp.concatenate(parts)

    return jax.tree.map(take, tree)


def _added(x: jax.Array, parts: jax.Array, pieces: Sequence[Any]) -> jax.Array:
    """Adds rows that `_taken` made to the pieces that they are of."""
    for piece, part in zip(pieces, jnp.split(parts, len(pieces)), strict=True):
        old = lax.dynamic_index_in_dim(x, piece, 1, keepdims=False)
        x = lax.dynamic_update_index_in_dim(x, old + part, piece, 1)
    return x
