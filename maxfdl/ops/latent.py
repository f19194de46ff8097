"""Attention of single queries over latent vectors, without their keys and values.

Letters: B rows, T queries, S latent vectors, H heads, L latent width, R width that
turns.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Mask


def latent_attention(
    attention: DotProductAttention,
    q_BTHL: Float[Array, "B T H L"],
    q_BTHR: Float[Array, "B T H R"],
    c_BSL: Float[Array, "B S L"],
    k_BS1R: Float[Array, "B S 1 R"],
    mask: Mask,
    width: int,
) -> Float[Array, "B T H L"]:
    """Mixes the latent vectors c as attention over the keys `[c key_h, k]` would.

    `q (c key)^T = (q key^T) c^T`, so the caller projects queries by the keys' kernel
    before, and what is mixed of c by the values' kernel after: a query costs
    `2 S H (2 L + R)` FLOPs where forming keys and values of width N and V would cost
    `2 S H L (N + V)`. DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.2.

    Args:
      attention: How scores are formed and values mixed.
      q_BTHL: Queries without a position, projected by the keys' kernel.
      q_BTHR: Queries that turn.
      c_BSL: Latent vectors.
      k_BS1R: Keys that turn, which all heads share.
      mask: Which latent vectors a query sees.
      width: Features of a query before it was projected, which scale the scores.
    """
    if attention.scale is None:
        attention = dataclasses.replace(attention, scale=1.0 / math.sqrt(width))
    c_BS1L = c_BSL[:, :, None]
    return attention(
        jnp.concatenate([q_BTHL, q_BTHR], axis=-1),
        jnp.concatenate([c_BS1L, k_BS1R], axis=-1),
        c_BS1L,
        mask,
    )
