"""Self-attention layers.

Letters: B rows, T tokens, D residual width, H query heads, G key-value heads, K width
of a head.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_attention
from maxfdl.layers.context import Context
from maxfdl.layers.linen.linear import Linear
from maxfdl.layers.linen.module import Module
from maxfdl.markers import FromParent
from maxfdl.ops.attention import CausalMask, DotProductAttention
from maxfdl.ops.rope import Rope


class Attention(Module, kw_only=True):
    """Causal grouped-query attention with rotary positions.

    Multi-head where `num_kv_heads == num_heads`, multi-query where it is 1 (Ainslie
    et al. 2023, https://arxiv.org/abs/2305.13245). Holds `2 D K (H + G)` weights.

    Args:
      query, key, value, out: The four projections.
      num_heads: H.
      num_kv_heads: G, a divisor of H.
      head_dim: K, even.
      rope: Rotation of queries and keys by position.
      attention: How scores are formed and values mixed.
    """

    check_config = staticmethod(check_attention)

    query: Callable[..., Linear]
    key: Callable[..., Linear]
    value: Callable[..., Linear]
    out: Callable[..., Linear]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope
    attention: DotProductAttention
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

        q_BTHK = query(x_BTD, context.at("query"))
        k_BTGK = key(x_BTD, context.at("key"))
        v_BTGK = value(x_BTD, context.at("value"))
        q_BTHK = self.rope(q_BTHK, context.positions)
        k_BTGK = self.rope(k_BTGK, context.positions)
        mask = CausalMask(context.positions, context.segment_ids)
        mixed_BTHK = self.attention(q_BTHK, k_BTGK, v_BTGK, mask)
        mixed_BTHK = checkpoint_name(mixed_BTHK, "attention_out")
        return out(mixed_BTHK, context.at("out"))
