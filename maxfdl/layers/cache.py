"""What attention keeps of the tokens it has seen, as values.

A row of a cached call is one document. Letters: B rows, T tokens of this call, S slots.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Arrays that have a slot per token, and whose token each slot holds.

    Token `p` of a document lies in slot `p mod S`: where no query sees further back
    than S tokens, S slots are enough.

    Args:
      entries: Arrays [B, S, ...], such as keys and values.
      positions: [B, S] position of the token in each slot, or NOWHERE.
    """

    entries: tuple[jax.Array, ...]
    positions: jax.Array

    @classmethod
    def empty(cls, slots: int, like: Sequence[jax.Array]) -> "TokenCache":
        """Returns a cache of `slots` for entries such as `like`, [B, T, ...] each."""
        rows = like[0].shape[0]
        entries = [jnp.zeros((rows, slots, *x.shape[2:]), x.dtype) for x in like]
        return cls(tuple(entries), jnp.full((rows, slots), NOWHERE, jnp.int32))

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

        entries = tuple(map(put, self.entries, new))
        return TokenCache(entries, put(self.positions, positions))


def with_past(
    context: Any, rule: Causal, new: Sequence[jax.Array]
) -> tuple[Sequence[jax.Array], Mask]:
    """Returns the entries that the queries of this call may see, and the mask.

    Without a cache these are the `new` ones. With one it is read and written: a single
    token a row takes the place of one that it no longer sees, so it looks at the
    cache as it then is; several tokens look at the cache as it was, and at themselves.
    """
    here = context.places
    cache = context.cached(lambda length: TokenCache.empty(rule.reach(length), new))
    if cache is None:
        return new, Mask.within(rule, here)
    written = cache.write(new, here.positions)
    context.store(written)
    if context.starts_cache:
        return new, Mask.within(rule, here)
    if new[0].shape[1] == 1:
        seen, positions = written.entries, written.positions
    else:
        pairs = zip(cache.entries, new, strict=True)
        seen = [jnp.concatenate([old, x.astype(old.dtype)], 1) for old, x in pairs]
        positions = jnp.concatenate([cache.positions, here.positions], axis=1)
    return seen, Mask(rule, here, Places(positions, None), same=False)
