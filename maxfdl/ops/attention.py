"""Scaled dot-product attention over packed rows.

Letters: B rows, T tokens, H query heads, G key-value heads (H is a multiple of G),
R = H / G, K width of a head.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maxfdl.ops.cost import declare_flops

Implementation = Literal["auto", "xla", "cudnn", "tokamax"]

_MASKED = -1e30  # finite, so that a row without a visible key is no NaN


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CausalMask:
    """A query may see a key of the same document that is not after it.

    Args:
      positions: [B, T] place in the document; restarts with each.
      segment_ids: [B, T] document; None: a row is one.
    """

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"] | None

    def visible(self, queries: slice, keys: slice) -> Bool[Array, "B q k"]:
        """Returns which of `keys` each of `queries` may see."""
        seen = self.positions[:, queries, None] >= self.positions[:, None, keys]
        if self.segment_ids is not None:
            ids = self.segment_ids
            seen &= ids[:, queries, None] == ids[:, None, keys]
        return seen

    def dense(self) -> Bool[Array, "B T T"]:
        everything = slice(None)
        return self.visible(everything, everything)


@dataclasses.dataclass(frozen=True)
class DotProductAttention:
    """`softmax(q k^T / sqrt(K) + mask) v`, grouped-query where H > G.

    Scores and softmax are float32. Cost: `2 T^2 H K` FLOPs a row, for a causal mask
    hides half of `4 T^2 H K`.

    Args:
      implementation: `xla` is plain JAX and runs anywhere; `cudnn` and `tokamax` are
        fused kernels. `auto` picks by platform, see `resolve`.
    """

    implementation: Implementation = "auto"

    def resolve(self, platform: str | None = None) -> str:
        """Returns what `auto` means on `platform` (default: where JAX runs now)."""
        if self.implementation != "auto":
            return self.implementation
        platform = platform or jax.default_backend()
        return {"gpu": "cudnn", "tpu": "tokamax"}.get(platform, "xla")

    def __call__(
        self,
        q_BTHK: Float[Array, "B T H K"],
        k_BTGK: Float[Array, "B T G K"],
        v_BTGK: Float[Array, "B T G K"],
        mask: CausalMask,
    ) -> Float[Array, "B T H K"]:
        rows, tokens, heads, width = q_BTHK.shape
        attend = _IMPLEMENTATIONS[self.resolve()]
        flops = 2 * rows * tokens * tokens * heads * width
        return declare_flops(attend, flops)(q_BTHK, k_BTGK, v_BTGK, mask)


def _attend_xla(q_BTHK, k_BTGK, v_BTGK, mask):
    """Attends block of queries by block, each to the keys up to its own end.

    The blocks skip most of what a causal mask hides. On a CPU this and dividing by
    the normaliser last, where the array is small, make a layer's attention with
    gradients 2.5 to 4 times as fast (BUILD_NOTES.md, 2026-11-22).
    """
    rows, tokens, heads, width = q_BTHK.shape
    groups = k_BTGK.shape[2]
    q = q_BTHK.reshape(rows, tokens, groups, heads // groups, width)
    q_BGRTK = q.transpose(0, 2, 3, 1, 4) * (1.0 / math.sqrt(width))
    k_BGTK, v_BGTK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
    blocks = []
    for start, end in _query_blocks(tokens):
        queries, keys = slice(start, end), slice(0, end)
        scores = jnp.einsum(
            "bgrtk,bgsk->bgrts",
            q_BGRTK[:, :, :, queries],
            k_BGTK[:, :, keys],
            preferred_element_type=jnp.float32,
        )
        bias = jnp.where(mask.visible(queries, keys), 0.0, _MASKED)
        scores = scores + bias[:, None, None]
        highest = jnp.max(jax.lax.stop_gradient(scores), axis=-1, keepdims=True)
        odds = jnp.exp(scores - highest)
        mixed = jnp.einsum(
            "bgrts,bgsk->bgrtk", odds.astype(v_BGTK.dtype), v_BGTK[:, :, keys]
        )
        normaliser = jnp.sum(odds, axis=-1, keepdims=True)
        blocks.append((mixed / normaliser).astype(q_BTHK.dtype))
    out_BGRTK = jnp.concatenate(blocks, axis=3)
    return out_BGRTK.transpose(0, 3, 1, 2, 4).reshape(q_BTHK.shape)


def _query_blocks(tokens: int) -> list[tuple[int, int]]:
    """Cuts the queries in four, or fewer where a block would be under 128."""
    size = max(128, math.ceil(tokens / 4))
    return [(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _attend_cudnn(q_BTHK, k_BTGK, v_BTGK, mask):
    return jax.nn.dot_product_attention(
        q_BTHK, k_BTGK, v_BTGK, mask=mask.dense()[:, None], implementation="cudnn"
    )


def _attend_tokamax(q_BTHK, k_BTGK, v_BTGK, mask):
    import tokamax  # takes seconds to import, and most runs do not need it

    return tokamax.dot_product_attention(
        q_BTHK, k_BTGK, v_BTGK, mask=mask.dense()[:, None]
    )


_IMPLEMENTATIONS = {
    "xla": _attend_xla,
    "cudnn": _attend_cudnn,
    "tokamax": _attend_tokamax,
}
