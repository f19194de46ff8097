"""Who may see whom: rules of attention over packed rows.

Letters: B rows, T tokens, q queries, k keys.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

NOWHERE = 2**30
"""Position of padding and of empty slots: after every query, so that none sees it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where tokens stand.

    Args:
      positions: [B, T] place in the document; restarts with each.
      segment_ids: [B, T] document; None: a row is one.
    """

    positions: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"] | None

    def document_lengths(self) -> Int[Array, "B T"]:
        """Returns how many tokens of each token's document there are by now."""
        known = jnp.where(self.positions < NOWHERE, self.positions, -1)
        if self.segment_ids is None:
            last = jnp.max(known, axis=1, keepdims=True)
            return jnp.broadcast_to(last + 1, known.shape)
        # A row has no more documents than tokens, and 0 is padding.
        last = jax.vmap(functools.partial(_last_of_segments, count=known.shape[1] + 1))
        return last(known, self.segment_ids) + 1


def _last_of_segments(positions, segment_ids, count):
    return jax.ops.segment_max(positions, segment_ids, count)[segment_ids]


@dataclasses.dataclass(frozen=True)
class Band:
    """A rule as fused kernels take it: causal, maybe with a window and with chunks.

    Args:
      window: A query sees at most this many keys, itself the last; None: no limit.
      chunk: A query sees no key of an earlier chunk of its document, of this many
        tokens each; None: no chunks.
    """

    window: int | None = None
    chunk: int | None = None


@dataclasses.dataclass(frozen=True)
class Causal:
    """A query sees the keys that are not after it.

    A subclass that overrides `sees` overrides `band` too, or has none: then only plain
    JAX can attend with it.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "sees" in vars(cls) and "band" not in vars(cls):
            cls.band = lambda self: None

    def band(self) -> Band | None:
        """Returns the rule for fused kernels; None if it has no such form."""
        return Band()

    def sees(
        self, queries: Int[Array, "B q 1"], keys: Int[Array, "B 1 k"]
    ) -> Bool[Array, "B q k"]:
        """Returns which keys each query sees, by their positions in one document."""
        return queries >= keys

    def reach(self, length: int) -> int:
        """Returns how many keys a query ever sees in a document of `length` tokens."""
        return length


@dataclasses.dataclass(frozen=True)
class SlidingWindow(Causal):
    """A query sees itself and the `window - 1` keys before it.

    Beltagy et al. 2020, https://arxiv.org/abs/2004.05150, causal, and counted as
    Hugging Face and Mistral count.
    """

    window: int

    @staticmethod
    def check_config(node):
        if node.window < 1:
            yield f"SlidingWindow window ({node.window}) must be at least 1 token."
        if node.window >= NOWHERE:
            yield f"SlidingWindow window ({node.window}) must be below {NOWHERE}."

    def band(self) -> Band:
        return Band(window=self.window)

    def sees(
        self, queries: Int[Array, "B q 1"], keys: Int[Array, "B 1 k"]
    ) -> Bool[Array, "B q k"]:
        return super().sees(queries, keys) & (queries - keys < self.window)

    def reach(self, length: int) -> int:
        return min(self.window, length)


@dataclasses.dataclass(frozen=True)
class Chunked(Causal):
    """A document is cut in chunks of `size` tokens; a query sees back to its start.

    The local layers of Llama 4.
    """

    size: int

    @staticmethod
    def check_config(node):
        if node.size < 1:
            yield f"Chunked size ({node.size}) must be at least 1 token."
        if node.size >= NOWHERE:
            yield f"Chunked size ({node.size}) must be below {NOWHERE}."

    def band(self) -> Band:
        return Band(window=self.size, chunk=self.size)

    def sees(
        self, queries: Int[Array, "B q 1"], keys: Int[Array, "B 1 k"]
    ) -> Bool[Array, "B q k"]:
        return super().sees(queries, keys) & (queries // self.size == keys // self.size)

    def reach(self, length: int) -> int:
        return min(self.size, length)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """A rule between the places of queries and of keys; documents never mix.

    Args:
      rule: Who sees whom within a document.
      queries: Places of the queries.
      keys: Places of the keys.
      same: Whether these are the same tokens in the same order, those of a document
        side by side: then what comes later in the row is never seen, and distances in
        a document are distances in the row.
    """

    rule: Causal = dataclasses.field(metadata={"static": True})
    queries: Places
    keys: Places
    same: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def within(cls, rule: Causal, places: Places) -> "Mask":
        """Returns the mask among the tokens of a row."""
        return cls(rule, places, places, same=True)

    def visible(self, queries: slice, keys: slice) -> Bool[Array, "B q k"]:
        """Returns which of `keys` each of `queries` may see."""
        asks, keeps = self.queries, self.keys
        seen = self.rule.sees(
            asks.positions[:, queries, None], keeps.positions[:, None, keys]
        )
        if asks.segment_ids is not None and keeps.segment_ids is not None:
            ids = asks.segment_ids[:, queries, None]
            seen &= ids == keeps.segment_ids[:, None, keys]
        return seen

    def dense(self) -> Bool[Array, "B q k"]:
        everything = slice(None)
        return self.visible(everything, everything)

    def band(self) -> Band | None:
        """Returns what kernels are told of the rule, counted in places of the row.

        A query sees a key exactly if the band allows it and both have the same number
        in `segments`. None: no kernel can be told, as with the slots of a cache.
        """
        return self.rule.band() if self.same else None

    def segments(self) -> Int[Array, "B T"] | None:
        """Returns the number of each token's document, or, if the rule has chunks, of
        its chunk, counted along the row; None: each row is one segment."""
        band, starts = self.band(), self._starts()
        if band is None or band.chunk is None:
            return self.queries.segment_ids
        return None if starts is None else jnp.cumsum(starts, axis=1, dtype=jnp.int32)

    def first_keys(self) -> Int[Array, "B T"] | None:
        """Returns the place in the row of the first key that each query sees.

        It sees all keys from there up to its own place. None: from the first on.
        """
        band, starts = self.band(), self._starts()
        assert band is not None
        if starts is None and band.window is None:
            return None
        places = jnp.arange(self.queries.positions.shape[1], dtype=jnp.int32)
        first = jnp.zeros_like(self.queries.positions, jnp.int32)
        if starts is not None:
            first = jax.lax.cummax(jnp.where(starts, places, 0), axis=1)
        if band.window is not None:
            first = jnp.maximum(first, places - (band.window - 1))
        return first

    def _starts(self) -> Bool[Array, "B T"] | None:
        """Returns which tokens are of another segment than the one before them."""
        band = self.band()
        assert band is not None
        numbers = []
        if self.queries.segment_ids is not None:
            numbers.append(self.queries.segment_ids)
        if band.chunk is not None:
            numbers.append(self.queries.positions // band.chunk)
        if not numbers:
            return None
        changes = [ids[:, 1:] != ids[:, :-1] for ids in numbers]
        return jnp.pad(functools.reduce(jnp.logical_or, changes), ((0, 0), (1, 0)))
