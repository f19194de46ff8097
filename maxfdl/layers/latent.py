"""Attention over a latent vector per token.

Letters: B rows, T tokens, S tokens that can be seen, D residual width, H heads, L
latent width, N width of a head that knows no position, R width that turns, V width of a
value.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.cache import CacheFormat, with_past
from maxfdl.layers.checks import check_latent_attention
from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.linear import Linear, LowRankLinear
from maxfdl.layers.watch import WatchScores
from maxfdl.markers import FromParent, Operational
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.latent import latent_attention
from maxfdl.ops.mask import Causal
from maxfdl.ops.rope import Rope


class LatentAttention(Layer):
    """Multi-head latent attention: keys and values are projections of one vector.

    `c = norm(latent(x))`; head h has the key `[key(c)_h, rope(rope_key(x))]`, whose
    second part all heads share, and the value `value(c)_h`. A cache holds `L + R`
    numbers per token. DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.

    Args:
      query: Projection to H heads of width N + R, direct or through a low rank.
      latent, latent_norm: Projection to c, and its norm.
      rope_key: Projection to the part of the key that turns.
      key, value: Projections of c to H heads of width N, and V, without biases. A
        single token that looks at a cache never forms what they project, see
        `ops.latent`.
      out: Projection from H heads of width V.
      num_heads: H.
      latent_dim: L.
      nope_dim: N.
      rope_dim: R, even.
      value_dim: V.
      rope: Rotation of the last R features of queries, and of `rope_key`.
      mask: Which tokens of its document a token sees.
      attention: How scores are formed and values mixed.
      watch: Leaves the sink `scores`, a `HeadScores`; None leaves none. A single token
        that looks at a cache leaves none either.
      cache: How the latent vector and the key that turns are cached in 8 bits; None: as
        they are.
    """

    named_tensors = ("query", "key", "value", "attention_out", "attention_projected")
    check_config = staticmethod(check_latent_attention)

    query: Callable[..., Linear | LowRankLinear]
    latent: Callable[..., Linear]
    latent_norm: Callable[..., Module]
    rope_key: Callable[..., Linear]
    key: Callable[..., Linear]
    value: Callable[..., Linear]
    out: Callable[..., Linear]
    num_heads: int
    latent_dim: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    rope: Rope
    mask: Causal
    attention: DotProductAttention
    watch: WatchScores | None = None
    cache: Annotated[CacheFormat | None, Operational] = None
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        embed, middle = {"embed": self.features}, {"latent": self.latent_dim}
        heads = {"heads": self.num_heads}
        query_heads = heads | {"head_dim": self.nope_dim + self.rope_dim}
        key_heads = heads | {"head_dim": self.nope_dim}
        value_heads = heads | {"head_dim": self.value_dim}
        turning = {"head_dim": self.rope_dim}
        maker.child("query", self.query, inputs=embed, outputs=query_heads)
        maker.child("latent", self.latent, inputs=embed, outputs=middle)
        maker.child("latent_norm", self.latent_norm, features=self.latent_dim)
        maker.child("rope_key", self.rope_key, inputs=embed, outputs=turning)
        maker.child("key", self.key, inputs=middle, outputs=key_heads)
        maker.child("value", self.value, inputs=middle, outputs=value_heads)
        maker.child("out", self.out, inputs=value_heads, outputs=embed)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        q_BTHQ = parts.query(x_BTD, at("query"))
        q_BTHN, q_BTHR = jnp.split(q_BTHQ, [self.nope_dim], axis=-1)
        q_BTHR = self.rope(q_BTHR, context.places)
        k_BT1R = parts.rope_key(x_BTD, at("rope_key"))[:, :, None]
        k_BT1R = self.rope(k_BT1R, context.places)
        c_BTL = parts.latent_norm(parts.latent(x_BTD, at("latent")), at("latent_norm"))
        (c_BSL, k_BS1R), mask = with_past(
            context, self.mask, (c_BTL, k_BT1R), self.cache
        )
        if x_BTD.shape[1] == 1 and not mask.same:
            q_BTHL = parts.key.einsum("bthn,lhn->bthl", q_BTHN, at("key"))
            mixed_BTHL = latent_attention(
                self.attention, q_BTHL, q_BTHR, c_BSL, k_BS1R, mask, q_BTHQ.shape[-1]
            )
            mixed_BTHV = parts.value.einsum("bthl,lhv->bthv", mixed_BTHL, at("value"))
        else:
            k_BSHN = parts.key(c_BSL, at("key"))
            v_BSHV = parts.value(c_BSL, at("value"))
            k_BSHR = jnp.broadcast_to(k_BS1R, (*k_BSHN.shape[:3], k_BS1R.shape[-1]))
            q_BTHQ = jnp.concatenate([q_BTHN, q_BTHR], axis=-1)
            k_BSHQ = jnp.concatenate([k_BSHN, k_BSHR], axis=-1)
            if self.watch is not None:
                shared = k_BS1R.shape[-1]
                self.watch(self.attention, q_BTHQ, k_BSHQ, mask, context, shared)
            mixed_BTHV = self.attention(
                checkpoint_name(q_BTHQ, "query"),
                checkpoint_name(k_BSHQ, "key"),
                checkpoint_name(v_BSHV, "value"),
                mask,
                sharding=context.sharding,
            )
        mixed_BTHV = checkpoint_name(mixed_BTHV, "attention_out")
        return checkpoint_name(parts.out(mixed_BTHV, at("out")), "attention_projected")
