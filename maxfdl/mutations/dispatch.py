"""How many tokens experts take."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.mutations.fields import put
from maxfdl.mutations.scope import MODEL, network_in
from maxfdl.ops.experts import Capacity, Dispatch, Dropless

C = TypeVar("C", bound=fdl.Buildable)


def capacity(cfg: C, *, factor: float = 1.25, under: str = MODEL) -> C:
    """Gives every expert room for equally many tokens, and drops those beyond.

    A token that is dropped by an expert goes without what that would have given. The
    metric `dropped` counts them. On a mesh with an axis `expert`, devices need memory
    for `factor` times what an even spread needs, where dropless experts need it for
    the worst case. `dropless` is the inverse.

    Args:
      cfg: The graph.
      factor: Room of an expert, in units of what an even spread of the tokens needs.
      under: Path of the network.

    Raises:
      MutationError: If there are no experts.
    """
    out = copy(cfg)
    for node in nodes_of(network_in(out, under), Dispatch):
        swap(node, Capacity, factor=factor)
    return out


def dropless(cfg: C, *, room_factor: float | None = None, under: str = MODEL) -> C:
    """Lets every expert take all tokens that choose it, as graphs do at first.

    It is the inverse of `capacity`.

    Args:
      cfg: The graph.
      room_factor: Bounds the memory where a mesh cuts the experts: rows that each
        device has room for, in units of what an even spread needs. Tokens beyond that
        are dropped and counted. None: room for all that may come.
      under: Path of the network.

    Raises:
      MutationError: If there are no experts.
    """
    out = copy(cfg)
    for node in nodes_of(network_in(out, under), Dispatch):
        swap(node, Dropless)
        put(node, "room_factor", room_factor)
    return out
