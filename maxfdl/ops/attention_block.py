"""Attention of some queries to some of their keys, as a part of a whole.

The softmax over all keys is put together from parts: each part comes with the logarithm
of its normaliser, by which `merged` weighs it (Milakov & Gimelshein 2018,
https://arxiv.org/abs/1805.02867). The backward pass of a part needs only the normaliser
of the whole (Dao et al. 2022, https://arxiv.org/abs/2205.14135).

Letters: B rows, T queries, S keys, H query heads, G key-value heads (H is a multiple of
G), R = H / G, K width of a query and key, V width of a value.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from maxfdl.ops.mask import Causal, Mask, Places

MASKED = -1e30
"""Score of a key that a query may not see: finite, so that a row without a visible key
is no NaN."""

_QUERIES = 1024  # of which the scores are in memory at a time


class BlockAttention(abc.ABC):
    """Computes parts of attention.

    `told` makes the arrays, [B, T] each, that say which keys a query sees: a part gets
    those of its queries and of its keys. `offset` is the distance in the row from the
    first key to the first query of the part; None: every key comes before all queries
    and is within reach of the mask.
    """

    @abc.abstractmethod
    def told(self, mask: Mask) -> Any: ...

    @abc.abstractmethod
    def forward(
        self, q, k, v, of_queries: Any, of_keys: Any, offset: int | None
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
        """Returns the output of this part alone, and its log-normaliser, in float32."""

    @abc.abstractmethod
    def backward(
        self, q, k, v, of_queries: Any, of_keys: Any, offset: int | None, whole
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the gradients of `q`, `k` and `v` that this part contributes.

        `whole` is (output, log-normaliser, gradient of the output), of all keys.
        """


def merged(
    part: tuple[Float[Array, "B T H V"], Float[Array, "B T H"]],
    other: tuple[Float[Array, "B T H V"], Float[Array, "B T H"]],
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """Returns output and log-normaliser over the keys of both parts."""
    (out, normaliser), (more, of_more) = part, other
    whole = jnp.logaddexp(normaliser, of_more)
    weights = jnp.exp(normaliser - whole), jnp.exp(of_more - whole)
    return out * weights[0][..., None] + more * weights[1][..., None], whole


@dataclasses.dataclass(frozen=True)
class PlainBlocks(BlockAttention):
    """Parts of attention in plain JAX, for any mask.

    Memory: float32 scores of up to 1024 queries and all keys of the part.

    Args:
      rule: Which keys of its document a query sees.
      scale: Factor of the scores.
      soft_cap: Scores become `soft_cap tanh(score / soft_cap)`; None leaves them.
    """

    rule: Causal
    scale: float
    soft_cap: float | None

    def told(self, mask: Mask) -> tuple[jax.Array, jax.Array | None]:
        return mask.queries.positions, mask.queries.segment_ids

    def forward(self, q, k, v, of_queries, of_keys, offset):
        def some(q, of_queries):
            scores = self._scores(q, k, of_queries, of_keys)
            highest = jnp.max(scores, axis=-1, keepdims=True)
            odds = jnp.exp(scores - highest)
            normaliser = jnp.sum(odds, axis=-1, keepdims=True)
            mixed = _product("bgrts,bsgv->bgrtv", odds.astype(v.dtype), v) / normaliser
            return _by_token(mixed), _by_token(highest + jnp.log(normaliser))[..., 0]

        return _in_blocks(some, q.shape[1])(q, of_queries)

    def backward(self, q, k, v, of_queries, of_keys, offset, whole):
        groups = k.shape[2]

        def some(so_far, queries):
            d_k, d_v = so_far
            q, of_queries, (out, normaliser, d_out) = queries
            d_out = d_out.astype(jnp.float32)
            error = jnp.sum(out.astype(jnp.float32) * d_out, axis=-1)
            d_out = _by_group(d_out, groups)
            scores = self._scores(q, k, of_queries, of_keys)
            weights = jnp.exp(scores - _by_group(normaliser[..., None], groups))
            d_weights = _product("bgrtv,bsgv->bgrts", d_out.astype(v.dtype), v)
            d_scores = weights * (d_weights - _by_group(error[..., None], groups))
            if self.soft_cap is not None:
                capped = jnp.maximum(scores, -self.soft_cap) / self.soft_cap
                d_scores = d_scores * (1.0 - jnp.square(capped))
            d_scores = (d_scores * self.scale).astype(k.dtype)
            d_q = _by_token(_product("bgrts,bsgk->bgrtk", d_scores, k))
            d_k += _product("bgrts,bgrtk->bsgk", d_scores, _by_group(q, groups))
            d_v += _product(
                "bgrts,bgrtv->bsgv", weights.astype(v.dtype), d_out.astype(v.dtype)
            )
            return (d_k, d_v), d_q

        zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
        scan = _scan_blocks(some, q.shape[1])
        (d_k, d_v), d_q = scan(zeros, (q, of_queries, whole))
        return d_q, d_k, d_v

    def _scores(self, q, k, of_queries, of_keys):
        """Returns [B, G, R, T, S] scores, capped and masked."""
        scores = self.scale * _product("bgrtk,bsgk->bgrts", _by_group(q, k.shape[2]), k)
        if self.soft_cap is not None:
            scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        queries, keys = Places(*of_queries), Places(*of_keys)
        visible = Mask(self.rule, queries, keys, same=False).dense()
        return jnp.where(visible[:, None, None], scores, MASKED)


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _by_group(x_BTHK: jax.Array, groups: int) -> jax.Array:
    """Returns [B, G, R, T, ...] of [B, T, H, ...]."""
    rows, tokens, heads, width = x_BTHK.shape
    x = x_BTHK.reshape(rows, tokens, groups, heads // groups, width)
    return x.transpose(0, 2, 3, 1, 4)


def _by_token(x_BGRTK: jax.Array) -> jax.Array:
    """Returns [B, T, H, ...] of [B, G, R, T, ...]."""
    rows, groups, shared, tokens, width = x_BGRTK.shape
    x = x_BGRTK.transpose(0, 3, 1, 2, 4)
    return x.reshape(rows, tokens, groups * shared, width)


def _scan_blocks(function, tokens: int):
    """Returns `function(carry, queries)` run on block after block of the queries."""
    size = next(n for n in range(min(tokens, _QUERIES), 0, -1) if tokens % n == 0)
    if size == tokens:
        return function
    count = tokens // size

    def cut(x):
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    def joined(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], tokens, *x.shape[3:])

    def run(carry, queries):
        carry, out = lax.scan(function, carry, jax.tree.map(cut, queries))
        return carry, jax.tree.map(joined, out)

    return run


def _in_blocks(function, tokens: int):
    """Returns `function(*queries)` run on block after block of the queries."""
    scan = _scan_blocks(lambda carry, queries: (carry, function(*queries)), tokens)
    return lambda *queries: scan(None, queries)[1]
