"""Scaled dot-product attention over packed rows.

Letters: B rows, T queries, S keys, H query heads, G key-value heads (H is a multiple of
G), R = H / G, K width of a query and key, V width of a value.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maxfdl.errors import UserError
from maxfdl.markers import Operational
from maxfdl.ops.attention_block import MASKED, BlockAttention, PlainBlocks
from maxfdl.ops.balance import counted
from maxfdl.ops.context_parallel import ContextParallel, RingAttention
from maxfdl.ops.cost import declare_flops
from maxfdl.ops.fused_attention import KERNELS, Demand, best_on_gpu, refusal
from maxfdl.ops.mask import Mask
from maxfdl.ops.ring import Cut
from maxfdl.ops.target import target_platform

Implementation = Literal["auto", "xla", "cudnn", "tokamax"]


@dataclasses.dataclass(frozen=True)
class DotProductAttention:
    """`softmax(cap(scale q k^T) + mask) v`, grouped-query where H > G.

    Scores and softmax are float32. Cost: `T T H (K + V)` FLOPs a row, for a causal mask
    hides half of it; `2 T S H (K + V)` against a cache.

    Args:
      implementation: `xla` is plain JAX and runs anywhere. `cudnn` is the fused kernel
        of NVIDIA's library. `tokamax` is a fused kernel written in Pallas: splash
        attention on a TPU, tokamax's own on a GPU; a CPU interprets the first, slowly,
        for tests. `auto` picks by platform, see `resolve`. What a kernel cannot do is
        an error. Queries that look at a cache are attended by `xla` in any case.
      scale: Factor of the scores; None: `1 / sqrt(K)`.
      soft_cap: Scores become `soft_cap tanh(score / soft_cap)`; None leaves them.
      context_parallel: How devices attend that share the tokens of a row.
    """

    implementation: Annotated[Implementation, Operational] = "auto"
    scale: float | None = None
    soft_cap: float | None = None
    context_parallel: Annotated[ContextParallel, Operational] = RingAttention()

    @staticmethod
    def check_config(node):
        if node.soft_cap is not None and node.soft_cap <= 0:
            yield (
                f"DotProductAttention soft_cap ({node.soft_cap}) must be positive; None"
                " leaves the scores as they are."
            )
        if node.implementation in KERNELS:
            problem = refusal(node.implementation, Demand(soft_cap=node.soft_cap))
            yield from [problem] if problem else []

    def resolve(
        self,
        platform: str | None = None,
        dtype: DTypeLike = "float32",
        demand: Demand | None = None,
    ) -> str:
        """Returns what `auto` means on `platform` (default: what is traced for).

        Args:
          platform: `cpu`, `gpu` or `tpu`.
          dtype: Type of queries, keys and values; kernels for a GPU take 16 bits.
          demand: What else is asked; None: a causal mask between whole rows.
        """
        if self.implementation != "auto":
            return self.implementation
        demand = dataclasses.replace(
            demand or Demand(), soft_cap=self.soft_cap, dtype=dtype
        )
        platform = platform or target_platform()
        if platform == "gpu":
            return best_on_gpu(demand)
        is_known = refusal("tokamax", demand, platform) is None
        return "tokamax" if platform == "tpu" and is_known else "xla"

    def __call__(
        self,
        q_BTHK: Float[Array, "B T H K"],
        k_BSGK: Float[Array, "B S G K"],
        v_BSGV: Float[Array, "B S G V"],
        mask: Mask,
        sinks_H: Float[Array, " H"] | None = None,
        sharding: Any | None = None,
    ) -> Float[Array, "B T H V"]:
        """Attends.

        Args:
          q_BTHK, k_BSGK, v_BSGV: Queries, keys and values.
          mask: Which keys each query sees.
          sinks_H: Scores that take weight and give no value.
          sharding: Where arrays lie, a `maxfdl.sharding.Sharding`; None on one device.

        Raises:
          UserError: If the implementation cannot do this, saying which can.
        """
        rows, tokens, heads, width = q_BTHK.shape
        name = self._chosen(q_BTHK, v_BSGV, mask, sinks_H)
        cut = Cut.of(sharding, heads, k_BSGK.shape[2]) if mask.same else None
        if cut is None:
            attend = self._of_rows(name, width, sharding)
        else:
            whole, blocks = self._of_rows(name, width), self._blocks(name, width, mask)
            attend = self.context_parallel.attend(cut, whole, blocks)
        widths = width + v_BSGV.shape[-1]
        flops = rows * tokens * k_BSGK.shape[1] * heads * widths
        flops = flops if mask.same else 2 * flops
        return declare_flops(attend, flops)(q_BTHK, k_BSGK, v_BSGV, mask, sinks_H)

    def _chosen(self, q_BTHK, v_BSGV, mask, sinks_H) -> str:
        """Returns the name of the implementation for these arguments."""
        demand = Demand(
            band=mask.band(),
            is_packed=mask.queries.segment_ids is not None,
            has_sinks=sinks_H is not None,
            soft_cap=self.soft_cap,
            width=q_BTHK.shape[-1],
            value_width=v_BSGV.shape[-1],
            dtype=q_BTHK.dtype,
        )
        name = self.resolve(dtype=q_BTHK.dtype, demand=demand)
        if name == "xla" or not mask.same:
            return "xla"
        problem = refusal(name, demand, target_platform())
        if problem is not None:
            raise UserError(problem)
        return name

    def _of_rows(self, name: str, width: int, sharding: Any | None = None) -> Callable:
        """Returns what attends whole rows of tokens."""
        options = dict(scale=self._scale(width), soft_cap=self.soft_cap)
        if name == "xla":
            return functools.partial(_attend_xla, **options)
        return functools.partial(_attend_fused, name, sharding=sharding, **options)

    def _blocks(self, name: str, width: int, mask: Mask) -> BlockAttention | None:
        """Returns what attends parts of rows; None if the implementation cannot."""
        options = self._scale(width), self.soft_cap
        if name == "tokamax" and target_platform() != "gpu":
            # Pallas takes a third of a second to import.
            from maxfdl.ops.splash_attention import SplashBlocks

            band = mask.band()
            assert band is not None
            return SplashBlocks(band.window, *options)
        if name == "xla" or self.implementation == "auto":
            return PlainBlocks(mask.rule, *options)
        return None

    def highest_scores(
        self,
        q_BTHK: Float[Array, "B T H K"],
        k_BSGK: Float[Array, "B S G K"],
        mask: Mask,
        sharding: Any | None = None,
    ) -> Float[Array, " H"]:
        """Returns the highest score of each head, before the cap, of visible keys.

        Padding does not count, and no gradient flows. Where `xla` attends, XLA finds
        that the scores are there already; beside a kernel it costs up to `T T H K`
        FLOPs a row and the memory of a quarter of the scores. No model FLOPs.
        """
        q_BTHK, k_BSGK = jax.lax.stop_gradient((q_BTHK, k_BSGK))
        cut = Cut.of(sharding, q_BTHK.shape[2], k_BSGK.shape[2]) if mask.same else None
        highest = self._highest_scores
        if cut is not None:
            highest = self.context_parallel.highest_scores(cut, highest)
        return declare_flops(highest, 0)(q_BTHK, k_BSGK, mask)

    def _highest_scores(self, q_BTHK, k_BSGK, mask):
        real_BT = counted(mask.queries)
        highest = jnp.full(q_BTHK.shape[2], MASKED)
        scale = self._scale(q_BTHK.shape[-1])
        for queries, keys, scores in _scores(q_BTHK, k_BSGK, mask, scale):
            # Of each query first, as `_attend_xla` does, so that XLA does it once.
            of_query = jnp.max(_masked(scores, mask, queries, keys), axis=-1)
            is_real = real_BT[:, None, None, queries]
            of_head = jnp.max(jnp.where(is_real, of_query, MASKED), axis=(0, 3))
            highest = jnp.maximum(highest, of_head.reshape(-1))
        return highest

    def _scale(self, width: int) -> float:
        return 1.0 / math.sqrt(width) if self.scale is None else self.scale


def _attend_xla(q_BTHK, k_BSGK, v_BSGV, mask, sinks_H, *, scale, soft_cap):
    """Attends block of queries by block, each to the keys up to its own end.

    The blocks skip most of what a causal mask hides. On a CPU this and dividing by
    the normaliser last, where the array is small, make a layer's attention with
    gradients 2.5 to 4 times as fast (BUILD_NOTES.md, 2026-11-22).
    """
    rows, tokens, heads, _ = q_BTHK.shape
    groups = k_BSGK.shape[2]
    v_BGSV = v_BSGV.swapaxes(1, 2)
    if sinks_H is not None:
        sinks = sinks_H.astype(jnp.float32).reshape(groups, heads // groups, 1, 1)
    blocks = []
    for queries, keys, scores in _scores(q_BTHK, k_BSGK, mask, scale):
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = _masked(scores, mask, queries, keys)
        highest = jnp.max(jax.lax.stop_gradient(scores), axis=-1, keepdims=True)
        if sinks_H is not None:
            highest = jnp.maximum(highest, jax.lax.stop_gradient(sinks))
        odds = jnp.exp(scores - highest)
        mixed = jnp.einsum(
            "bgrts,bgsv->bgrtv", odds.astype(v_BGSV.dtype), v_BGSV[:, :, keys]
        )
        normaliser = jnp.sum(odds, axis=-1, keepdims=True)
        if sinks_H is not None:
            normaliser = normaliser + jnp.exp(sinks - highest)
        blocks.append((mixed / normaliser).astype(q_BTHK.dtype))
    out_BGRTV = jnp.concatenate(blocks, axis=3)
    return out_BGRTV.transpose(0, 3, 1, 2, 4).reshape(rows, tokens, heads, -1)


def _scores(
    q_BTHK: jax.Array, k_BSGK: jax.Array, mask: Mask, scale: float
) -> Iterator[tuple[slice, slice, jax.Array]]:
    """Yields blocks of queries, the keys that they may see, and [B, G, R, q, k] scores,
    before cap and mask."""
    rows, tokens, heads, width = q_BTHK.shape
    groups = k_BSGK.shape[2]
    q = q_BTHK.reshape(rows, tokens, groups, heads // groups, width)
    q_BGRTK, k_BGSK = q.transpose(0, 2, 3, 1, 4) * scale, k_BSGK.swapaxes(1, 2)
    everything = [(0, tokens, k_BSGK.shape[1])]
    for start, end, seen in _query_blocks(tokens) if mask.same else everything:
        queries, keys = slice(start, end), slice(0, seen)
        yield (
            queries,
            keys,
            jnp.einsum(
                "bgrtk,bgsk->bgrts",
                q_BGRTK[:, :, :, queries],
                k_BGSK[:, :, keys],
                preferred_element_type=jnp.float32,
            ),
        )


def _masked(scores: jax.Array, mask: Mask, queries: slice, keys: slice) -> jax.Array:
    """Returns a block's scores, far below all others where a key may not be seen."""
    bias = jnp.where(mask.visible(queries, keys), 0.0, MASKED)
    return scores + bias[:, None, None]


def _query_blocks(tokens: int) -> list[tuple[int, int, int]]:
    """Cuts the queries in four, or fewer where a block would be under 128.

    A block is its first query, the one after its last, and how many keys it sees.
    """
    size = max(128, math.ceil(tokens / 4))
    starts = range(0, tokens, size)
    return [(start, (end := min(start + size, tokens)), end) for start in starts]


def _attend_fused(name, *args, **kwargs):
    """Attends with a kernel, and says it in a sentence if that refuses here."""
    try:
        return KERNELS[name](*args, **kwargs)
    except RuntimeError as error:  # and NotImplementedError, which is one
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"DotProductAttention implementation ({name}) cannot run here"
            f" ({lines[0].rstrip('.')}); use xla."
        ) from error
