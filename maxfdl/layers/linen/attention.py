"""Self-attention layers.

Letters: B rows, T tokens, D residual width, H query heads, G key-value heads, K width
of a head.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.cache import with_past
from maxfdl.layers.checks import check_attention
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.linen.linear import Linear
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.linen.norm import AcrossHeads, PerHead
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.watch import WatchScores
from maxfdl.markers import FromParent
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.mask import Causal
from maxfdl.ops.rope import Rope
from maxfdl.ops.temperature import LogTemperature


class Sinks(Module, kw_only=True):
    """A learned score per head that attention may spend its weight on.

    Xiao et al. 2023, https://arxiv.org/abs/2309.17453, as a logit without a key.
    """

    initializer: Initializer
    heads: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, context: Context) -> jax.Array:
        scores = Parameter((self.heads,), ("heads",), self.initializer, "bias")
        scores_H = param(self, "scores", scores)
        return context.weight(scores_H, ("heads",), dtype=jnp.float32)


class Attention(Module, kw_only=True):
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
    sinks: Callable[..., Sinks] | None = None
    watch: WatchScores | None = None
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        embed = {"embed": self.features}
        heads = {"heads": self.num_heads, "head_dim": self.head_dim}
        kv_heads = {"kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
        query = self.query(inputs=embed, outputs=heads, name="query")
        key = self.key(inputs=embed, outputs=kv_heads, name="key")
        value = self.value(inputs=embed, outputs=kv_heads, name="value")
        out = self.out(inputs=heads, outputs=embed, name="out")
        query_norm = self.query_norm and self.query_norm(
            heads=self.num_heads, features=self.head_dim, name="query_norm"
        )
        key_norm = self.key_norm and self.key_norm(
            heads=self.num_kv_heads, features=self.head_dim, name="key_norm"
        )
        gate = self.gate and self.gate(inputs=embed, outputs=heads, name="gate")
        sinks = self.sinks and self.sinks(heads=self.num_heads, name="sinks")

        at = context.at
        q_BTHK = apply_if(query_norm, query(x_BTD, at("query")), at("query_norm"))
        k_BTGK = apply_if(key_norm, key(x_BTD, at("key")), at("key_norm"))
        v_BTGK = value(x_BTD, at("value"))
        if self.rope is not None:
            q_BTHK = self.rope(q_BTHK, context.places)
            k_BTGK = self.rope(k_BTGK, context.places)
        if self.temperature is not None:
            q_BTHK = self.temperature(q_BTHK, context.positions)
        q_BTHK = checkpoint_name(q_BTHK, "query")
        k_BTGK = checkpoint_name(k_BTGK, "key")
        v_BTGK = checkpoint_name(v_BTGK, "value")
        (k_BSGK, v_BSGK), mask = with_past(context, self.mask, (k_BTGK, v_BTGK))
        if self.watch is not None:
            self.watch(self.attention, q_BTHK, k_BSGK, mask, context)
        sinks_H = None if sinks is None else sinks(at("sinks"))
        mixed_BTHK = self.attention(q_BTHK, k_BSGK, v_BSGK, mask, sinks_H)
        mixed_BTHK = checkpoint_name(mixed_BTHK, "attention_out")
        if gate is not None:
            mixed_BTHK = mixed_BTHK * jax.nn.sigmoid(gate(x_BTD, at("gate")))
        return checkpoint_name(out(mixed_BTHK, at("out")), "attention_projected")
