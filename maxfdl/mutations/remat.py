"""Rematerialisation."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.layers.execution import Remat
from maxfdl.mutations.roles import is_stack

C = TypeVar("C", bound=fdl.Buildable)


def remat(cfg: C, *, policy: Remat = "full") -> C:
    """Returns a copy of `cfg` whose backward pass keeps only what `policy` names.

    Same mathematics; memory for time. `remat(policy=none)` is the inverse. See
    `maxfdl.layers.execution.rematerialised` for the policies.

    Raises:
      MutationError: If there is no stack.
    """
    out = copy(cfg)
    for stack in nodes_of(out, is_stack):
        stack.remat = policy
    return out
