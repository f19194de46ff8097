"""The device mesh."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.sharding.mesh import MeshShape

C = TypeVar("C", bound=fdl.Buildable)


def mesh(
    cfg: C, *, replica: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1
) -> C:
    """Lays the run out on a mesh of replica x data x fsdp x tensor devices.

    One of the last three may be -1 and then takes all devices that the others leave.
    Same mathematics; sums run in another order. `replica` is for the replicas of
    `use_diloco`: each has data x fsdp x tensor devices, where several replicas may take
    turns. The inverse gives the shape that was there, usually `mesh(fsdp=-1)`.

    Raises:
      MutationError: If there is no mesh.
    """
    out = copy(cfg)
    for node in nodes_of(out, MeshShape):
        node.data, node.fsdp, node.tensor = data, fsdp, tensor
        put(node, "replica", None if replica == 1 else replica)
    return out
