"""Splash attention, the fused kernel for TPUs that comes with JAX.

It keeps scores in on-chip memory and skips the blocks that causal order and a window
hide. Letters: B rows, T tokens, H query heads, G key-value heads, K width of a query
and key, V width of a value.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jaxtyping import Array, Float, Int

_LANES = 128  # the kernel takes rows of a multiple of this many tokens
_BLOCKS = (512, 256, 128)  # queries and keys of one step of the kernel


def splash_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    segments_BT: Int[Array, "B T"] | None,
    sinks_H: Float[Array, " H"] | None,
    *,
    window: int | None,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B T H V"]:
    """Attends among the tokens of a row; on a CPU Pallas interprets the kernel.

    Args:
      q_BTHK, k_BTGK, v_BTGV: Queries, keys and values.
      segments_BT: A query sees keys of its own segment only; None: rows are whole.
      sinks_H: Scores that take weight and give no value.
      window: A query sees at most this many keys, itself the last; None: no limit.
      scale: Factor of the scores.
      soft_cap: Scores become `soft_cap tanh(score / soft_cap)`; None leaves them.
    """
    attend = functools.partial(_on_rows, window=window, scale=scale, soft_cap=soft_cap)
    # Only the branch of the platform that is compiled for gets into the program.
    return jax.lax.platform_dependent(
        *(q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H),
        tpu=functools.partial(attend, interpret=False),
        default=functools.partial(attend, interpret=True),
    )


def _on_rows(q_BTHK, k_BTGK, v_BTGV, segments_BT, sinks_H, *, scale, **options):
    tokens, heads = q_BTHK.shape[1:3]
    # What is added comes after all tokens, which therefore do not see it.
    added = -tokens % _LANES
    kernel = _kernel(heads, tokens + added, **options)

    def on_row(q_THK, k_TGK, v_TGV, segments_T):
        q_HTK, k_GTK, v_GTV = (
            jnp.pad(x.swapaxes(0, 1), ((0, 0), (0, added), (0, 0)))
            for x in (q_THK * scale, k_TGK, v_TGV)
        )
        segments = None
        if segments_T is not None:
            ids = jnp.pad(segments_T, (0, added))
            segments = splash_attention_kernel.SegmentIds(ids, ids)
        out_HTV = cast(jax.Array, kernel(q_HTK, k_GTK, v_GTV, segments, sinks_H))
        return out_HTV[:, :tokens].swapaxes(0, 1).astype(q_THK.dtype)

    return jax.vmap(on_row)(q_BTHK, k_BTGK, v_BTGV, segments_BT)


def _kernel(heads, length, *, window, soft_cap, interpret):
    shape = (length, length)
    if window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (window - 1, 0), offset=0)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(length),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )


def _block_sizes(length: int) -> splash_attention_kernel.BlockSizes:
    size = next(size for size in _BLOCKS if length % size == 0)
    forward = dict(block_q=size, block_kv=size)
    backward = dict.fromkeys(
        ("block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), size
    )
    return splash_attention_kernel.BlockSizes(**forward, **backward)
