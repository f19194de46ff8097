"""A run of DiLoCo that goes on with another number of replicas.

Letters: R replicas.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.sharding.memory import beside, on_device
from maxfdl.sharding.mesh import REPLICA

Own = dict[str, Any]
"""What replicas have of their own, [R, ...]: `replicas` of the training state."""


def of_number(count: int, own: Own) -> Own:
    """Returns abstract arrays like `own`, of `count` replicas.

    They lie on the same mesh. If its axis `replica` does not divide `count`, it shards
    another dim, so that no device holds all replicas.
    """

    def of(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = (count, *leaf.shape[1:])
        place = leaf.sharding
        if isinstance(place, NamedSharding):
            spec = _spec(shape, place.spec, place.mesh.shape.get(REPLICA, 1))
            place = NamedSharding(place.mesh, spec, memory_kind=place.memory_kind)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)

    return jax.tree.map(of, own)


def _spec(shape: tuple[int, ...], spec: PartitionSpec, groups: int) -> PartitionSpec:
    """Returns `spec` with the mesh axis `replica`, of size `groups`, at the first dim
    that it divides; at none if there is no such dim."""
    entries = [None, *spec[1:], *[None] * (len(shape) - len(spec))]
    free = [d for d, e in enumerate(entries) if e is None and not shape[d] % groups]
    if groups > 1 and free:
        entries[free[0]] = REPLICA
    return PartitionSpec(*entries)


def renumbered(own: Own, count: int, outer: Own) -> Own:
    """Returns what `count` replicas go on with.

    The first replicas keep all they have; those above `count` are left out, and with
    them what they have learnt since the last sync. A new replica begins with `outer`,
    and with the optimizer state, the averages and the guard of replica `i mod R`, but
    it has rejected no step.

    Args:
      own: Of R replicas.
      count: How many there shall be.
      outer: What a new one has of each entry that it does not take from another.
    """
    there = own["tokens"].shape[0]
    kept = jax.tree.map(lambda x: on_device(x)[:count], own)
    if count <= there:
        return jax.tree.map(beside, own, kept)
    others = jnp.arange(there, count) % there
    new = jax.tree.map(lambda x: on_device(x)[others], own)
    new |= jax.tree.map(
        lambda x: jnp.broadcast_to(on_device(x), (count - there, *x.shape)), outer
    )
    new["guard"] |= {
        name: jnp.zeros_like(new["guard"][name])
        for name in ("skipped", "skipped_in_a_row")
    }
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, new)
    return jax.tree.map(beside, own, joined)
