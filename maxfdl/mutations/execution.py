"""How stacks run: as a scan over repeats, or unrolled."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.mutations.roles import is_stack
from maxfdl.mutations.scope import MODEL, network_in

C = TypeVar("C", bound=fdl.Buildable)


def scan_layers(cfg: C, *, unroll: int = 1, under: str = MODEL) -> C:
    """Runs equal layers as a loop, so that compile time does not grow with depth.

    Each trip of the loop runs `unroll` repeats. Same parameters and mathematics.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(network_in(out, under), is_stack):
        swap(stack.execution, Scan, unroll=unroll)
    return out


def unroll_layers(cfg: C, *, under: str = MODEL) -> C:
    """Runs layers one after the other, without a loop, so that XLA may fuse them.

    Same parameters and mathematics; compile time grows with depth. `scan_layers` is the
    inverse.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(network_in(out, under), is_stack):
        swap(stack.execution, Unroll)
    return out
