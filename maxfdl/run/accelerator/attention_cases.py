"""Attention as the families of models ask for it: masks, heads, widths.

Letters: B rows, T queries, S keys, H query heads, G key-value heads, K width of a query
and key, V width of a value.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.ops.balance import counted
from maxfdl.ops.mask import NOWHERE, Causal, Chunked, Mask, Places, SlidingWindow


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind of attention.

    Args:
      name: What is special about it.
      heads, kv_heads, width: H, G and K.
      value_width: V; None is K.
      rule: Who sees whom within a document. Windows and chunks are three tenths of the
        row, so that their edges fall inside the tiles of a kernel.
      is_packed: Whether rows hold several documents and end in padding.
      is_cached: Whether one query a row looks at a cache, as in generation: no
        gradients, slots in the order of a ring, some of them empty.
      soft_cap: Of the scores.
      has_sinks: Whether each head has a score that takes weight and gives no value.
    """

    name: str
    heads: int
    kv_heads: int
    width: int
    value_width: int | None = None
    rule: Literal["causal", "window", "chunks"] = "causal"
    is_packed: bool = False
    is_cached: bool = False
    soft_cap: float | None = None
    has_sinks: bool = False


# The families of which each is typical, most used first.
CASES = (
    Case("causal", 8, 8, 128),  # Llama 2
    Case("packed", 8, 2, 128, is_packed=True),  # Llama 3, Qwen
    Case("width_64", 8, 2, 64, is_packed=True),  # Llama 3.2 1B, SmolLM
    Case("window", 8, 2, 128, rule="window", is_packed=True),  # Mistral
    Case("width_256", 8, 1, 256, is_packed=True),  # Gemma: one key-value head
    Case("cache", 8, 2, 128, is_cached=True),
    Case("chunks", 8, 2, 128, rule="chunks", is_packed=True),  # Llama 4
    Case("soft_cap", 8, 4, 256, rule="window", is_packed=True, soft_cap=50.0),  # Gemma2
    Case("latent", 8, 8, 192, 128, is_packed=True),  # DeepSeek
    Case("sinks", 8, 2, 64, rule="window", is_packed=True, has_sinks=True),  # GPT-OSS
    Case("width_96", 8, 8, 96, is_packed=True),  # Phi-3: no power of two
    Case("whole_window", 8, 2, 128, rule="window"),  # Mistral, a document a row
    Case("window_cache", 8, 2, 128, rule="window", is_cached=True),
)


# On a CPU, where Pallas interprets its kernel: a case of each shape of program.
CASES_ON_CPU = ("window", "soft_cap", "latent", "cache")


class Inputs(NamedTuple):
    """Arguments of attention, and the gradient that comes to its output.

    `upstream` is zero at padding, whose output no loss looks at; None: no gradients.
    """

    q_BTHK: jax.Array
    k_BSGK: jax.Array
    v_BSGV: jax.Array
    mask: Mask
    sinks_H: jax.Array | None
    upstream_BTHV: jax.Array | None

    def arrays(self) -> tuple:
        """Returns what a program takes: the mask as the arrays that it is made of."""
        return (*self[:3], jax.tree.leaves(self.mask), *self[4:])

    def cast(self, dtype: str) -> "Inputs":
        """Returns the same numbers in `dtype`; sinks stay float32, as parameters do."""
        cast = {
            name: getattr(self, name).astype(dtype)
            for name in ("q_BTHK", "k_BSGK", "v_BSGV", "upstream_BTHV")
            if getattr(self, name) is not None
        }
        return self._replace(**cast)


def inputs_of(case: Case, tokens: int) -> Inputs:
    """Returns random inputs in bfloat16 with rows of `tokens` keys."""
    random = np.random.Generator(np.random.Philox(key=[tokens, len(case.name)]))

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.bfloat16)

    mask = _cached_mask(case, tokens) if case.is_cached else _row_mask(case, tokens)
    rows, queries = mask.queries.positions.shape
    value_width = case.value_width or case.width
    upstream = None
    if not case.is_cached:
        upstream = normal(rows, queries, case.heads, value_width)
        upstream *= counted(mask.queries)[:, :, None, None]
    return Inputs(
        q_BTHK=normal(rows, queries, case.heads, case.width),
        k_BSGK=normal(rows, tokens, case.kv_heads, case.width),
        v_BSGV=normal(rows, tokens, case.kv_heads, value_width),
        mask=mask,
        sinks_H=jnp.linspace(-1.0, 2.0, case.heads) if case.has_sinks else None,
        upstream_BTHV=upstream,
    )


def _rule(case: Case, tokens: int) -> Causal:
    size = tokens * 3 // 10
    rules = {"causal": Causal(), "window": SlidingWindow(size), "chunks": Chunked(size)}
    return rules[case.rule]


def _row_mask(case: Case, tokens: int) -> Mask:
    """Two rows that are one document each or, if packed, three and padding."""
    positions = np.tile(np.arange(tokens), (2, 1))
    if not case.is_packed:
        return Mask.within(_rule(case, tokens), Places(jnp.int32(positions), None))
    starts = [[0, tokens * 5 // 8, tokens * 3 // 4], [0, 1, tokens // 2]]
    end = tokens * 15 // 16
    segments = np.zeros_like(positions)
    for row, firsts in enumerate(starts):
        for number, first in enumerate(firsts, start=1):
            segments[row, first:] = number
            positions[row, first:] = np.arange(tokens - first)
        segments[row, end:] = 0
        positions[row, end:] = np.arange(tokens - end)
    places = Places(jnp.int32(positions), jnp.int32(segments))
    return Mask.within(_rule(case, tokens), places)


def _cached_mask(case: Case, slots: int) -> Mask:
    """The newest token of four documents, the last one longer than the cache."""
    last = np.array([[0], [slots // 2], [slots - 1], [slots * 4 // 3]])
    positions = last - (last - np.arange(slots)) % slots
    positions = np.where(positions < 0, NOWHERE, positions)
    return Mask(
        _rule(case, slots),
        Places(jnp.int32(last), None),
        Places(jnp.int32(positions), None),
        same=False,
    )
