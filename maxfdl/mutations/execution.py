"""How stacks run: as a loop, or layer after layer."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.mutations.roles import is_stack

C = TypeVar("C", bound=fdl.Buildable)


def scan_layers(cfg: C, *, unroll: int = 1) -> C:
    """Returns a copy of `cfg` whose stacks are loops of `unroll` repeats a trip.

    Same parameters and mathematics; compile time does not grow with depth.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(out, is_stack):
        swap(stack.execution, Scan, unroll=unroll)
    return out


def unroll_layers(cfg: C) -> C:
    """Returns a copy of `cfg` whose stacks have no loop; undone by `scan_layers`.

    Same parameters and mathematics; XLA may fuse across layers, and compiles longer.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(out, is_stack):
        swap(stack.execution, Unroll)
    return out
