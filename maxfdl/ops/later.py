"""Tokens further on in the same document.

Letters: B rows, T tokens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from maxfdl.ops import balance
from maxfdl.ops.mask import Places


def later(x: Num[Array, "B T"], steps: int) -> Num[Array, "B T"]:
    """Returns what stands `steps` further on; past the end of a row, its beginning."""
    return jnp.roll(x, -steps, axis=1)


def has_later(places: Places, steps: int) -> Bool[Array, "B T"]:
    """Returns which tokens have another of their document `steps` further on."""
    length = places.positions.shape[1]
    inside = jnp.arange(length) < length - steps
    here = balance.counted(places)
    there = inside & later(here.astype(jnp.int32), steps).astype(bool)
    if places.segment_ids is not None:
        there &= later(places.segment_ids, steps) == places.segment_ids
    return here & there


def places_with_later(places: Places, steps: int) -> Places:
    """Returns the places in which all tokens without such another are padding."""
    ids = jnp.ones_like(places.positions)
    if places.segment_ids is not None:
        ids = places.segment_ids
    known: Int[Array, "B T"] = jnp.where(has_later(places, steps), ids, 0)
    return Places(places.positions, known)
