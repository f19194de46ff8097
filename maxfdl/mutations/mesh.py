"""The device mesh."""

from collections.abc import Sequence
from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.sharding.mesh import MeshShape

C = TypeVar("C", bound=fdl.Buildable)


def mesh(
    cfg: C,
    *,
    replica: int = 1,
    data: int = 1,
    fsdp: int = 1,
    stage: int = 1,
    context: int = 1,
    tensor: int = 1,
    expert: int = 1,
    across: Sequence[str] = (),
) -> C:
    """Lays the run out on a mesh with so many devices along each of these axes.

    `fsdp`, `data` and `expert` cut the rows of a batch, `context` its sequences,
    `tensor` the matrix products, `expert` the experts, `stage` the layers of a
    pipeline. One axis may be -1 and then takes all devices that the others leave. Same
    mathematics; sums run in another order. `replica`, which is never -1, is for the
    replicas of `use_diloco`: each has the product of the other axes as its devices,
    where several replicas may take turns. `across` names the axes that go across
    slices, such as `("data",)`. The inverse gives the shape that was there,
    usually `mesh(fsdp=-1)`.

    Raises:
      MutationError: If there is no mesh.
    """
    out = copy(cfg)
    optional = dict(replica=replica, stage=stage, context=context, expert=expert)
    for node in nodes_of(out, MeshShape):
        node.data, node.fsdp, node.tensor = data, fsdp, tensor
        for axis, size in optional.items():
            put(node, axis, None if size == 1 else size)
        put(node, "across", tuple(across) or None)
    return out
