"""Replicas of a model that train side by side and exchange nothing.

The mesh axis `replica` is manual: a `shard_map` runs the replicas of each of its
devices, one or several. Along the other mesh axes a replica computes what a run alone
would compute on a mesh without that axis.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.sharding import Sharding

Replica = Callable[[Sharding, Any, Any, Any], tuple[Any, Any]]


def each_alone(
    replica: Replica, sharding: Sharding, num_replicas: int, places: Any
) -> Callable:
    """Returns `replica` as a function of all replicas.

    The arrays of all have a leading dim that counts replicas; those of a batch have the
    rows of the first replica first.

    Args:
      replica: `replica(sharding, own, rows, shared) -> own, results` of one replica:
        its own arrays, its rows of the batch, and arrays that all of them read.
      sharding: Of the whole program.
      num_replicas: A multiple of the mesh axis `replica`.
      places: Shardings of what each has of its own, a tree like it. It is pinned to
        them, for XLA would put off the all-gather of what an update sharded further.
    """
    groups = sharding.size(REPLICA)

    def of_group(here: Sharding, replicas: Any, batch: Any, shared: Any) -> Any:
        def pin(tree: Any, *dims: None) -> Any:
            def inside(place: NamedSharding) -> NamedSharding:
                spec = PartitionSpec(*dims, *place.spec[1:])
                return NamedSharding(here.mesh, spec)

            return pinned(tree, jax.tree.map(inside, places))

        def one(own: Any, rows: Any) -> Any:
            own, results = replica(here, pin(own), rows, shared)
            return pin(own), results

        count = num_replicas // groups
        replicas = pin(replicas, None)
        rows = jax.tree.map(lambda x: _by_replica(here, x, count), batch)
        if count > 1:
            replicas, results = _one_by_one(one, replicas, rows)
        else:
            own, rows = jax.tree.map(lambda x: lax.squeeze(x, [0]), (replicas, rows))
            given = one(own, rows)
            replicas, results = jax.tree.map(lambda x: lax.expand_dims(x, [0]), given)
        return pin(replicas, None), results

    if groups == 1:
        return lambda *arguments: of_group(sharding, *arguments)
    apart = PartitionSpec(REPLICA)
    return jax.shard_map(
        lambda *arguments: of_group(sharding.within_replica(), *arguments),
        mesh=sharding.mesh,
        in_specs=(apart, apart, PartitionSpec()),
        out_specs=(apart, apart),
        axis_names={REPLICA},
        check_vma=False,
    )


def pinned(tree: Any, places: Any) -> Any:
    """Returns arrays with these shardings, in the memory where they are."""

    def pin(x: jax.Array, place: NamedSharding) -> jax.Array:
        place = NamedSharding(place.mesh, place.spec)
        return lax.with_sharding_constraint(x, place)

    return jax.tree.map(pin, tree, places)


def _by_replica(sharding: Sharding, x: jax.Array, count: int) -> jax.Array:
    """Returns the rows of a batch with a leading dim that counts replicas."""
    x = x.reshape(count, x.shape[0] // count, *x.shape[1:])
    axes = (None, "batch", "sequence", *[None] * x.ndim)[: x.ndim]
    return sharding.constrain(x, axes)


def _one_by_one(replica: Callable, replicas: Any, rows: Any) -> Any:
    """Runs replicas of one device in a loop, each updated where it lies."""

    def body(replicas: Any, each: Any) -> Any:
        index, rows = each
        own = jax.tree.map(
            lambda x: lax.dynamic_index_in_dim(x, index, 0, keepdims=False), replicas
        )
        own, results = replica(own, rows)
        replicas = jax.tree.map(
            lambda x, new: lax.dynamic_update_index_in_dim(x, new, index, 0),
            replicas,
            own,
        )
        return replicas, results

    count = jax.tree.leaves(rows)[0].shape[0]
    return lax.scan(body, replicas, (jnp.arange(count), rows))
