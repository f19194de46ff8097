"""In how many bytes the optimizer stores its moments."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.roles import is_optimizer
from maxfdl.optim.moments import Bfloat16, EightBit

C = TypeVar("C", bound=fdl.Buildable)

_KINDS = {"float32": None, "bfloat16": Bfloat16, "eight_bit": EightBit}


def moment_storage(
    cfg: C,
    *,
    kind: Literal["float32", "bfloat16", "eight_bit"],
    block_size: int | None = None,
) -> C:
    """Stores the moments of the optimizer in float32, bfloat16 or 8 bits.

    Works with every rule, which computes in float32 as before: `bfloat16` rounds
    stochastically, `eight_bit` by blocks, as 8-bit Adam does. See
    `maxfdl.optim.moments`. `moment_storage(kind=float32)` is the inverse.

    Args:
      cfg: The graph.
      kind: 4, 2, or about 1 byte a number.
      block_size: Of `eight_bit`: numbers that share a scale; None is 256.

    Raises:
      MutationError: If there is no optimizer, or if another kind gets a `block_size`.
    """
    made = chosen(_KINDS, kind, "moment_storage kind")
    if made is not EightBit and block_size is not None:
        raise MutationError(
            f"moment_storage block_size ({block_size}) is of the kind eight_bit, not of"
            f" {kind}; leave it out."
        )
    fields = {} if block_size is None else {"block_size": block_size}
    out = copy(cfg)
    for optimizer in nodes_of(out, is_optimizer):
        put(optimizer, "moments", fdl.Config(made, **fields) if made else None)
    return out
