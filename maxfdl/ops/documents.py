"""Which document each token of a packed row belongs to, for ops that carry a state."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from maxfdl.ops.mask import NOWHERE, Places


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
