"""Splash attention, the fused kernel for TPUs that comes with JAX.

It keeps scores in on-chip memory and skips the blocks that causal order and a window
hide. Letters: B rows, T tokens, H query heads, G key-value heads, K width of a query
and key, V width of a value.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jaxtyping import Array, Float, Int

from maxfdl.ops.attention_block import BlockAttention
from maxfdl.ops.mask import Mask

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
        block_sizes=_block_sizes(length, length),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )


def _block_sizes(queries: int, keys: int) -> splash_attention_kernel.BlockSizes:
    of_q, of_kv = (
        next(size for size in _BLOCKS if length % size == 0)
        for length in (queries, keys)
    )
    return splash_attention_kernel.BlockSizes(
        block_q=of_q,
        block_kv=of_kv,
        block_q_dkv=of_q,
        block_kv_dkv=of_kv,
        block_q_dq=of_q,
        block_kv_dq=of_kv,
    )


@dataclasses.dataclass(frozen=True)
class SplashBlocks(BlockAttention):
    """Parts of attention by the same kernel, whose outputs are rounded to the type of
    the queries before they are put together.

    JAX has no public gradient of a part: `backward` calls that of the kernel with the
    log-normaliser of the whole.

    Args:
      window: A query sees at most this many keys, itself the last; None: no limit.
      scale: Factor of the scores.
      soft_cap: Scores become `soft_cap tanh(score / soft_cap)`; None leaves them.
    """

    window: int | None
    scale: float
    soft_cap: float | None

    def told(self, mask: Mask) -> jax.Array | None:
        return mask.segments()

    def forward(self, q, k, v, of_queries, of_keys, offset):
        def on_row(q, k, v, of_queries, of_keys, *, interpret):
            tokens, kernel = q.shape[0], self._kernel(q, k, offset, interpret)
            segments = _segments(of_queries, of_keys, q, k)
            arrays = _by_head(q * self.scale, k, v)
            out, (normaliser,) = cast(tuple, kernel(*arrays, segments))
            out = out[:, :tokens].swapaxes(0, 1).astype(jnp.float32)
            return out, normaliser[:, :tokens].swapaxes(0, 1)

        return _on_platform(on_row, q, k, v, of_queries, of_keys)

    def backward(self, q, k, v, of_queries, of_keys, offset, whole):
        def on_row(q, k, v, of_queries, of_keys, whole, *, interpret):
            out, normaliser, d_out = whole
            kernel = self._kernel(q, k, offset, interpret)
            segments = _segments(of_queries, of_keys, q, k)
            of_heads = _by_head(q * self.scale, k, v, out, d_out)
            q_HTK, k_GSK, v_GSV, out_HTV, d_out_HTV = of_heads
            normaliser_HT = _by_head(normaliser[..., None])[0][..., 0]
            saved = (q_HTK, k_GSK, v_GSV, segments, None, out_HTV, normaliser_HT)
            options: dict[str, Any] = dict(kernel.kwargs, save_residuals=False)
            grads = splash_attention_kernel._splash_attention_bwd(
                **options,
                res=(*saved, kernel.dq_mask_info, kernel.dkv_mask_info),
                do=d_out_HTV,
            )
            d_q, d_k, d_v = (
                grad[:, : x.shape[0]].swapaxes(0, 1).astype(jnp.float32)
                for grad, x in zip(grads[3:6], (q, k, v), strict=True)
            )
            return d_q * self.scale, d_k, d_v

        return _on_platform(on_row, q, k, v, of_queries, of_keys, whole)

    def _kernel(self, q_THK, k_SGK, offset: int | None, interpret: bool):
        queries, heads, _ = q_THK.shape
        shape = _padded(queries), _padded(k_SGK.shape[0])
        if offset is None:
            mask = splash_attention_mask.FullMask(shape)
        else:
            back = None if self.window is None else self.window - 1
            mask = splash_attention_mask.LocalMask(shape, (back, 0), offset=offset)
        return splash_attention_kernel.make_splash_mha(
            splash_attention_mask.MultiHeadMask([mask] * heads),
            block_sizes=_block_sizes(*shape),
            head_shards=1,
            q_seq_shards=1,
            save_residuals=True,
            attn_logits_soft_cap=self.soft_cap,
            interpret=interpret,
        )


def _on_platform(on_row, *arrays):
    """Runs `on_row` for each row; Pallas interprets it but on a TPU."""

    def run(*arrays, interpret):
        return jax.vmap(functools.partial(on_row, interpret=interpret))(*arrays)

    return jax.lax.platform_dependent(
        *arrays,
        tpu=functools.partial(run, interpret=False),
        default=functools.partial(run, interpret=True),
    )


def _padded(tokens: int) -> int:
    return tokens + -tokens % _LANES


def _by_head(*arrays):
    """Returns [H, T, ...] of [T, H, ...], filled up with zeros."""
    padding = [(0, -x.shape[0] % _LANES) for x in arrays]
    return [
        jnp.pad(x.swapaxes(0, 1), ((0, 0), pad, (0, 0)))
        for x, pad in zip(arrays, padding, strict=True)
    ]


def _segments(of_queries, of_keys, q_THK, k_SGK):
    """Returns the segments of queries and keys; what fills these up is in none."""
    tokens, keys = q_THK.shape[0], k_SGK.shape[0]
    if of_queries is None:
        if not keys % _LANES:
            return None
        of_queries, of_keys = jnp.zeros(tokens, jnp.int32), jnp.zeros(keys, jnp.int32)
    return splash_attention_kernel.SegmentIds(
        jnp.pad(of_queries, (0, -tokens % _LANES), constant_values=-1),
        jnp.pad(of_keys, (0, -keys % _LANES), constant_values=-2),
    )
