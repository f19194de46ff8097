"""Ring attention: keys and values travel, queries stay.

Functions here run inside a `shard_map`, where each of n devices along a mesh axis has
one shard of every row. Letters: B rows, T tokens of a shard, P pieces of a shard, L
tokens of a piece, H query heads, G key-value heads, K width of a query and key, V width
of a value.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maxfdl.ops.attention_block import BlockAttention, merged
from maxfdl.ops.mask import Mask
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


def ring_attention(
    blocks: BlockAttention,
    ring: Ring,
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    told: Any,
    sinks_H: Float[Array, " H"] | None,
    *,
    reach: int,
    zigzag: bool,
) -> Float[Array, "B T H V"]:
    """Attends to the keys of all shards, in the memory of two.

    Liu et al. 2023, https://arxiv.org/abs/2310.01889. Keys and values go round the ring
    while a device computes with those that it has; the backward pass goes round again
    with the gradients of keys and values, in float32, and forms the scores anew. Where
    the reach is shorter than a row, each device sends only the keys that are seen.

    A device sends, each way, as many keys and values as n - 1 shards have, and half a
    shard of queries, keys, values and outputs for the zigzag order; or, within
    a shorter reach, `reach - 1` keys and values.

    Args:
      blocks: How the parts of attention are computed.
      ring: The devices.
      q_BTHK, k_BTGK, v_BTGV: This device's shards.
      told: What `blocks` is told of these tokens, [B, T] each.
      sinks_H: Scores that take weight and give no value.
      reach: Most keys that a query sees, itself the last.
      zigzag: Whether the work of causal attention is balanced, see `to_pairs`, where
        the reach is the whole row; within a shorter one it is balanced as it is.
    """
    tokens, dtype = q_BTHK.shape[1], q_BTHK.dtype
    arrays = (q_BTHK, k_BTGK, v_BTGV, told)
    if reach < ring.size * tokens:
        route = _Neighbours(blocks, ring, reach)
        return _attend(route)(*arrays, sinks_H).astype(dtype)
    if not zigzag:
        arrays = jax.tree.map(lambda x: x[:, None], arrays)
        out = _attend(_Round(blocks, ring, _in_order))(*arrays, sinks_H)
        return out[:, 0].astype(dtype)
    out = _attend(_Round(blocks, ring, _in_pairs))(*to_pairs(arrays, ring), sinks_H)
    return from_pairs(out.astype(dtype), ring)


def _attend(route: "_Neighbours | _Round") -> Callable:
    """Returns `attend(q, k, v, told, sinks)` along the route, with its gradients."""

    @jax.custom_vjp
    def attend(q, k, v, told, sinks):
        return forward(q, k, v, told, sinks)[0]

    def forward(q, k, v, told, sinks):
        out, normaliser = route.forward(q, k, v, told)
        if sinks is not None:
            whole = jnp.logaddexp(normaliser, sinks.astype(jnp.float32))
            out, normaliser = out * jnp.exp(normaliser - whole)[..., None], whole
        out = out.astype(q.dtype)
        return out, (q, k, v, told, sinks, out, normaliser)

    def backward(saved, d_out):
        q, k, v, told, sinks, out, normaliser = saved
        grads = route.backward(q, k, v, told, (out, normaliser, d_out))
        d_sinks = None
        if sinks is not None:
            share = jnp.exp(sinks.astype(jnp.float32) - normaliser)
            of_out = out.astype(jnp.float32) * d_out.astype(jnp.float32)
            d_sinks = -jnp.sum(share * jnp.sum(of_out, -1), range(out.ndim - 2))
            d_sinks = d_sinks.astype(sinks.dtype)
        d_q, d_k, d_v = (
            g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)
        )
        return d_q, d_k, d_v, None, d_sinks

    attend.defvjp(forward, backward)
    return attend


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a shard does with the last keys of an earlier one: its first queries, as
    many, see some of them.

    Args:
      far: Shards between, one more.
      count: Keys.
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
class _Neighbours:
    """Exchanges keys with the devices within reach: arrays are [B, T, ...]."""

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


@dataclasses.dataclass(frozen=True)
class _Meeting:
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


def _in_order(ring: Ring, far: Any) -> list[_Meeting]:
    """What a shard and the one `far` places before it, going round, have to do."""
    if isinstance(far, int) and far == 0:
        return [_Meeting([0], [0], offset=0)]
    return [_Meeting([0], [0], happens=ring.number >= far)]


def _in_pairs(ring: Ring, far: Any) -> list[_Meeting]:
    """The same for pairs of an early and a late half, as `to_pairs` makes them.

    A late half sees every early one. The other meeting is that of both early halves, if
    the early keys come first, and else of both late ones.
    """
    if isinstance(far, int) and far == 0:
        return [_Meeting([0, 1], [0, 1], offset=0), _Meeting([1], [0])]

    def early(number):
        return jnp.minimum(2 * number, 2 * ring.size - 1 - 2 * number)

    here, there = ring.number, (ring.number - far) % ring.size
    which = jnp.where(early(there) < early(here), 0, 1)
    return [_Meeting([1, which], [0, which])]


@dataclasses.dataclass(frozen=True)
class _Round:
    """Sends the keys of every shard to every device: arrays are [B, P, L, ...].

    Args:
      meetings: What there is to do with the keys of the shard that is so far back.
    """

    blocks: BlockAttention
    ring: Ring
    meetings: Callable[[Ring, Any], list[_Meeting]]

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


def ring_highest_scores(
    highest: Callable[[jax.Array, jax.Array, Mask], jax.Array],
    ring: Ring,
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    mask: Mask,
    *,
    reach: int,
) -> Float[Array, " H"]:
    """Returns the highest scores of this device's queries, keys going round.

    Args:
      highest: Of some queries and keys.
      ring: The devices.
      q_BTHK, k_BTGK, mask: This device's shards.
      reach: Most keys that a query sees, itself the last.
    """
    here, rule = mask.queries, mask.rule

    def step(carry, far):
        found, (k, there) = carry
        k, there = ring.shift((k, there), 1)
        whole = Mask(rule, here, there, same=False)
        meet = functools.partial(highest, q_BTHK, k, whole)
        meets = ring.number >= far
        more = lax.cond(meets, meet, lambda: jnp.full_like(found, -jnp.inf))
        return (jnp.maximum(found, more), (k, there)), None

    found = highest(q_BTHK, k_BTGK, mask)
    steps = min(ring.size - 1, math.ceil((reach - 1) / q_BTHK.shape[1]))
    carry = found, (k_BTGK, here)
    (found, _), _ = lax.scan(step, carry, jnp.arange(1, steps + 1))
    return found
