"""What attention keeps of the tokens it has seen, as values.

A row of a cached call is one document. Letters: B rows, T tokens of this call, S slots.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from maxfdl.ops.codec import Codec, Parts
from maxfdl.ops.mask import NOWHERE, Causal, Mask, Places


@dataclasses.dataclass(frozen=True)
class EmptyCache:
    """Asks a call to begin caches.

    Args:
      length: Tokens that a row of a cache has room for.
      apart: Whether the caches of a stack's repeats come out as arrays of their own,
        for decoding with parameters that lie apart too.
    """

    length: int
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """How a cache stores vectors in 8 bits, each with a float32 scale of its own.

    A vector is that of a token and a head, or of a token alone: its last dim. One of
    zeros stays one.

    Args:
      numbers: What it is rounded to: `int8`, of which the greatest magnitude becomes
        127, or `e4m3`, FP8 numbers up to 448, which keep more of small magnitudes.
    """

    numbers: Literal["int8", "e4m3"]

    def encode(self, x: jax.Array) -> Parts:
        """Returns codes like `x`, and scales whose last dim is 1."""
        return self._codec.encode(x)

    def decode(self, parts: Parts, dtype: DTypeLike) -> jax.Array:
        return self._codec.decode(parts, parts["codes"].shape[-2]).astype(dtype)

    @property
    def _codec(self) -> Codec:
        return Codec(self.numbers, inputs=1, outputs=None)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("entries", "positions"),
    meta_fields=("format",),
)
@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Arrays that have a slot per token, and whose token each slot holds.

    Token `p` of a document lies in slot `p mod S`: where no query sees further back
    than S tokens, S slots are enough.

    Args:
      entries: Arrays [B, S, ...], such as keys and values; of a format, their parts.
      positions: [B, S] position of the token in each slot, or NOWHERE.
      format: How vectors are stored in 8 bits; None: as they are.
    """

    entries: tuple[Any, ...]
    positions: jax.Array
    format: CacheFormat | None = None

    @classmethod
    def empty(
        cls, slots: int, like: Sequence[jax.Array], format: CacheFormat | None = None
    ) -> "TokenCache":
        """Returns a cache of `slots` for entries such as `like`, [B, T, ...] each."""
        rows = like[0].shape[0]
        entries = [jnp.zeros((rows, slots, *x.shape[2:]), x.dtype) for x in like]
        if format is not None:
            entries = map(format.encode, entries)
        nowhere = jnp.full((rows, slots), NOWHERE, jnp.int32)
        return cls(tuple(entries), nowhere, format)

    def read(self, like: Sequence[jax.Array]) -> Sequence[jax.Array]:
        """Returns the entries as arrays, in the types of `like`."""
        if self.format is None:
            return self.entries
        pairs = zip(self.entries, like, strict=True)
        return [self.format.decode(parts, x.dtype) for parts, x in pairs]

    def write(self, new: Sequence[jax.Array], positions: jax.Array) -> "TokenCache":
        """Returns the cache with the tokens of this call in it.

        Padding is dropped, and so is what a later token of this call would overwrite.
        """
        slots = self.positions.shape[1]
        known = positions < NOWHERE
        last = jnp.max(jnp.where(known, positions, -1), axis=1, keepdims=True)
        kept = known & (positions > last - slots)
        slot = jnp.where(kept, positions % slots, slots)
        row = jnp.arange(positions.shape[0])[:, None]

        def put(old: jax.Array, values: jax.Array) -> jax.Array:
            return old.at[row, slot].set(values.astype(old.dtype), mode="drop")

        encode = self.format.encode if self.format is not None else lambda x: x
        entries = jax.tree.map(put, self.entries, tuple(map(encode, new)))
        return dataclasses.replace(
            self, entries=entries, positions=put(self.positions, positions)
        )


def with_past(
    context: Any,
    rule: Causal,
    new: Sequence[jax.Array],
    format: CacheFormat | None = None,
) -> tuple[Sequence[jax.Array], Mask]:
    """Returns the entries that the queries of this call may see, and the mask.

    Without a cache these are the `new` ones. With one it is read and written: a single
    token a row takes the place of one that it no longer sees, so it looks at the
    cache as it then is; several tokens look at the cache as it was, and at themselves.
    With a format, what comes from a cache is rounded, and these themselves are not.
    """
    here = context.places
    cache = context.cached(
        lambda length: TokenCache.empty(rule.reach(length), new, format)
    )
    if cache is None:
        return new, Mask.within(rule, here)
    written = cache.write(new, here.positions)
    context.store(written)
    if context.starts_cache:
        return new, Mask.within(rule, here)
    if new[0].shape[1] == 1:
        seen, positions = written.read(new), written.positions
    else:
        pairs = zip(cache.read(new), new, strict=True)
        seen = [jnp.concatenate([old, x.astype(old.dtype)], 1) for old, x in pairs]
        positions = jnp.concatenate([cache.positions, here.positions], axis=1)
    return seen, Mask(rule, here, Places(positions, None), same=False)
