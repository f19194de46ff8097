"""Self-attention layers.

Letters: B rows, T tokens, D residual width, H query heads, G key-value heads, K width
of a head.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.cache import CacheFormat, with_past
from maxfdl.layers.checks import check_attention
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.linear import Linear
from maxfdl.layers.norm import AcrossHeads, PerHead
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.watch import WatchScores
from maxfdl.markers import FromParent, Operational
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.mask import Causal
from maxfdl.ops.rope import Rope
from maxfdl.ops.temperature import LogTemperature


class AttentionSinks(Layer):
    """A learned score per head that attention may spend its weight on.

    Xiao et al. 2023, https://arxiv.org/abs/2309.17453, as a logit without a key.
    """

    initializer: Initializer
    heads: Annotated[int, FromParent]

    def make(self, maker: Maker):
        dims = {"heads": self.heads}
        maker.parameter(
            "scores", Parameter.of_dims(dims, init=self.initializer, role="bias")
        )

    @with_parts
    def __call__(self, parts, context: Context) -> jax.Array:
        return parts.scores.ready(context, jnp.float32)


class Attention(Layer):
    """Causal grouped-query attention.

    Multi-head where `num_kv_heads == num_heads`, multi-query where it is 1 (Ainslie
    et al. 2023, https://arxiv.org/abs/2305.13245). Holds `2 D K (H + G)` weights.

    Args:
      query, key, value, out: The four projections.
      num_heads: H.
      num_kv_heads: G, a divisor of H.
      head_dim: K, even.
      rope: Rotation of queries and keys by position; None leaves them.
      mask: Which tokens of its document a token sees.
      attention: How scores are formed and values mixed.
      query_norm, key_norm: Norms of queries and keys, before they turn.
      temperature: Scaling of queries by position.
      gate: Projection whose sigmoid multiplies what attention mixed.
      sinks: A score per head that takes weight from the keys and gives no value.
      watch: Leaves the sink `scores`, a `HeadScores`; None leaves none.
      cache: How keys and values are cached in 8 bits; None: as they are.
    """

    named_tensors = ("query", "key", "value", "attention_out", "attention_projected")
    check_config = staticmethod(check_attention)

    query: Callable[..., Linear]
    key: Callable[..., Linear]
    value: Callable[..., Linear]
    out: Callable[..., Linear]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None
    mask: Causal
    attention: DotProductAttention
    query_norm: Callable[..., PerHead | AcrossHeads] | None = None
    key_norm: Callable[..., PerHead | AcrossHeads] | None = None
    temperature: LogTemperature | None = None
    gate: Callable[..., Linear] | None = None
    sinks: Callable[..., AttentionSinks] | None = None
    watch: WatchScores | None = None
    cache: Annotated[CacheFormat | None, Operational] = None
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        embed = {"embed": self.features}
        heads = {"heads": self.num_heads, "head_dim": self.head_dim}
        kv_heads = {"kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
        of_query = {"heads": self.num_heads, "features": self.head_dim}
        of_key = {"heads": self.num_kv_heads, "features": self.head_dim}
        maker.child("query", self.query, inputs=embed, outputs=heads)
        maker.child("key", self.key, inputs=embed, outputs=kv_heads)
        maker.child("value", self.value, inputs=embed, outputs=kv_heads)
        maker.child("out", self.out, inputs=heads, outputs=embed)
        maker.child("query_norm", self.query_norm, **of_query)
        maker.child("key_norm", self.key_norm, **of_key)
        maker.child("gate", self.gate, inputs=embed, outputs=heads)
        maker.child("sinks", self.sinks, heads=self.num_heads)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        q_BTHK = apply_if(
            parts.query_norm, parts.query(x_BTD, at("query")), at("query_norm")
        )
        k_BTGK = apply_if(parts.key_norm, parts.key(x_BTD, at("key")), at("key_norm"))
        v_BTGK = parts.value(x_BTD, at("value"))
        if self.rope is not None:
            q_BTHK = self.rope(q_BTHK, context.places)
            k_BTGK = self.rope(k_BTGK, context.places)
        if self.temperature is not None:
            q_BTHK = self.temperature(q_BTHK, context.positions)
        q_BTHK = checkpoint_name(q_BTHK, "query")
        k_BTGK = checkpoint_name(k_BTGK, "key")
        v_BTGK = checkpoint_name(v_BTGK, "value")
        (k_BSGK, v_BSGK), mask = with_past(
            context, self.mask, (k_BTGK, v_BTGK), self.cache
        )
        if self.watch is not None:
            self.watch(self.attention, q_BTHK, k_BSGK, mask, context)
        sinks_H = None if parts.sinks is None else parts.sinks(at("sinks"))
        mixed_BTHK = self.attention(
            q_BTHK, k_BSGK, v_BSGK, mask, sinks_H, context.sharding
        )
        mixed_BTHK = checkpoint_name(mixed_BTHK, "attention_out")
        if parts.gate is not None:
            mixed_BTHK = mixed_BTHK * jax.nn.sigmoid(parts.gate(x_BTD, at("gate")))
        return checkpoint_name(parts.out(mixed_BTHK, at("out")), "attention_projected")
