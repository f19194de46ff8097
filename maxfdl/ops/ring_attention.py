"""Ring attention: keys and values travel, queries stay.

Functions here run inside a `shard_map`, where each of n devices along a mesh axis has
one shard of every row. Letters: B rows, T tokens of a shard, H query heads, G key-value
heads, K width of a query and key, V width of a value.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maxfdl.ops.attention_block import BlockAttention
from maxfdl.ops.mask import Mask
from maxfdl.ops.ring import Ring
from maxfdl.ops.ring_round import Round, from_pairs, in_order, in_pairs, to_pairs
from maxfdl.ops.ring_within_reach import WithinReach


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
        route = WithinReach(blocks, ring, reach)
        return _attend(route)(*arrays, sinks_H).astype(dtype)
    if not zigzag:
        arrays = jax.tree.map(lambda x: x[:, None], arrays)
        out = _attend(Round(blocks, ring, in_order))(*arrays, sinks_H)
        return out[:, 0].astype(dtype)
    out = _attend(Round(blocks, ring, in_pairs))(*to_pairs(arrays, ring), sinks_H)
    return from_pairs(out.astype(dtype), ring)


def _attend(route: WithinReach | Round) -> Callable:
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
