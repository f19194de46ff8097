"""Which document each token of a packed row belongs to, for ops that carry a state.

Letters: B rows, T tokens.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from maxfdl.ops.mask import NOWHERE, Places
from maxfdl.ops.ring import Ring


def document_numbers(places: Places) -> Int[Array, "B T"]:
    """Returns how many documents began in the row up to each token, itself included.

    0 is the document that was under way before the row. One begins at position 0, and
    where the segment changes.
    """
    begins = places.positions == 0
    if places.segment_ids is not None:
        ids = places.segment_ids
        begins = begins.at[:, 1:].max(ids[:, 1:] != ids[:, :-1])
    return jnp.cumsum(begins, axis=1, dtype=jnp.int32)


def is_token(places: Places) -> Bool[Array, "B T"]:
    """Returns which places hold a token: the others are padding."""
    return places.positions < NOWHERE


def places_of_shard(places: Places, ring: Ring) -> Places:
    """Returns the places of a shard of rows, inside a `shard_map`, for these ops.

    They see whether a document begins with the shard: then its position is 0. Else the
    document that is under way is that of the shard before.
    """
    if places.segment_ids is None:
        return places
    first, last = places.segment_ids[:, :1], places.segment_ids[:, -1:]
    follows = jnp.where(ring.number > 0, ring.before(last) == first, True)
    begins = ~follows & is_token(places)[:, :1]
    positions = places.positions.at[:, :1].set(
        jnp.where(begins, 0, places.positions[:, :1])
    )
    return Places(positions, places.segment_ids)
