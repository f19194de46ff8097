"""Loss computed in tiles of tokens."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_cross_entropy
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.ops.tiled_cross_entropy import TiledCrossEntropy

C = TypeVar("C", bound=fdl.Buildable)


def vocab_tiling(
    cfg: C, *, num_tiles: int | None = None, tokens_per_tile: int | None = None
) -> C:
    """Computes the loss tile by tile, never holding the logits of all tokens.

    Same loss and gradients up to the order of sums, see `TiledCrossEntropy`.
    `vocab_tiling(num_tiles=1)` is the inverse.

    Raises:
      MutationError: If there is no cross-entropy, or not one size is given.
    """
    if (num_tiles is None) == (tokens_per_tile is None):
        raise MutationError("vocab_tiling takes either num_tiles or tokens_per_tile.")
    out = copy(cfg)
    for loss in nodes_of(out, is_cross_entropy):
        put(loss, "num_tiles", None)
        put(loss, "tokens_per_tile", None)
        if num_tiles == 1:
            fdl.update_callable(loss, CrossEntropy)
        else:
            fdl.update_callable(loss, TiledCrossEntropy)
            put(loss, "num_tiles", num_tiles)
            put(loss, "tokens_per_tile", tokens_per_tile)
    return out
