"""Self-attention layers.

Letters: B rows, T tokens, D residual width, H query heads, G key-value heads, K width
of a head.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_attention
from maxfdl.layers.context import Context
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.module import Module
from maxfdl.markers import FromParent
from maxfdl.ops.attention import CausalMask, DotProductAttention
from maxfdl.ops.rope import Rope


class Attention(Module):
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

    def __init__(
        self,
        *,
        query: Callable[..., Linear],
        key: Callable[..., Linear],
        value: Callable[..., Linear],
        out: Callable[..., Linear],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: Rope,
        attention: DotProductAttention,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.rope = rope
        self.attention = attention
        embed = {"embed": features}
        heads = {"heads": num_heads, "head_dim": head_dim}
        kv_heads = {"kv_heads": num_kv_heads, "head_dim": head_dim}
        self.query = query(inputs=embed, outputs=heads, rngs=rngs)
        self.key = key(inputs=embed, outputs=kv_heads, rngs=rngs)
        self.value = value(inputs=embed, outputs=kv_heads, rngs=rngs)
        self.out = out(inputs=heads, outputs=embed, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        q_BTHK = self.query(x_BTD, context.at("query"))
        k_BTGK = self.key(x_BTD, context.at("key"))
        v_BTGK = self.value(x_BTD, context.at("value"))
        q_BTHK = self.rope(q_BTHK, context.positions)
        k_BTGK = self.rope(k_BTGK, context.positions)
        mask = CausalMask(context.positions, context.segment_ids)
        mixed_BTHK = self.attention(q_BTHK, k_BTGK, v_BTGK, mask)
        mixed_BTHK = checkpoint_name(mixed_BTHK, "attention_out")
        return self.out(mixed_BTHK, context.at("out"))
