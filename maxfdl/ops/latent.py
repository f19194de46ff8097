"""Attention of single queries over latent vectors, without their keys and values.

Letters: B rows, T queries, S latent vectors, H heads, L latent width, N width of a head
that knows no position, R width that turns, V width of a value.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Mask


def absorbed_attention(
    attention: DotProductAttention,
    q_BTHN: Float[Array, "B T H N"],
    q_BTHR: Float[Array, "B T H R"],
    c_BSL: Float[Array, "B S L"],
    k_BS1R: Float[Array, "B S 1 R"],
    key_LHN: Float[Array, "L H N"],
    value_LHV: Float[Array, "L H V"],
    mask: Mask,
) -> Float[Array, "B T H V"]:
    """What attention over `[c key_h, k]` and `c value_h` mixes, in another order.

    `q (c key)^T = (q key^T) c^T`, and what is mixed of c is projected once: a query
    costs `2 S H (2 L + R)` FLOPs where forming all keys and values would cost
    `2 S H L (N + V)`. DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.2.
    """
    if attention.scale is None:
        width = q_BTHN.shape[-1] + q_BTHR.shape[-1]
        attention = dataclasses.replace(attention, scale=1.0 / math.sqrt(width))
    q_BTHL = jnp.einsum("bthn,lhn->bthl", q_BTHN, key_LHN)
    c_BS1L = c_BSL[:, :, None]
    mixed_BTHL = attention(
        jnp.concatenate([q_BTHL, q_BTHR], axis=-1),
        jnp.concatenate([c_BS1L, k_BS1R], axis=-1),
        c_BS1L,
        mask,
    )
    return jnp.einsum("bthl,lhv->bthv", mixed_BTHL, value_LHV)
