"""Data-parallel gradients, reduced once a step.

The mesh axis `data` is manual: a `shard_map` computes the gradients of each replica's
rows, and one `psum` or `psum_scatter` adds them up after the last microbatch. Along the
other mesh axes, which are automatic, XLA shards arrays and inserts collectives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maxfdl.layers.sinks import across
from maxfdl.ops.state import States
from maxfdl.sharding.sharding import DATA, Sharding
from maxfdl.train.gradients import Parts

Gradients = Callable[..., tuple[Any, Parts]]


def on_replicas(
    gradients: Gradients, sharding: Sharding, cuts: Any, states: States
) -> Gradients:
    """Returns `gradients` of the whole batch, a function of arrays alone.

    Args:
      gradients: `gradients(sharding, params, layer_state, batch, *others)` of the rows
        that one replica has.
      sharding: Of the whole program.
      cuts: Specs of the dims along which gradients end up sharded over replicas
        (ZeRO-1), a tree like them. A gradient costs one reduce-scatter, or, without
        such a dim, one all-reduce, of its float32 bytes.
      states: Makes one of the states of layers that the replicas leave.
    """

    def whole(params, layer_state, batch, *others):
        if sharding.data_parallel == 1:
            return gradients(sharding, params, layer_state, batch, *others)
        grads_and_parts = jax.shard_map(
            of_replica,
            mesh=sharding.mesh,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(),
                PartitionSpec(DATA),
                *[PartitionSpec()] * len(others),
            ),
            out_specs=(cuts, PartitionSpec()),
            axis_names={DATA},
            check_vma=False,
        )
        return grads_and_parts(params, layer_state, batch, *others)

    def of_replica(params, layer_state, batch, *others):
        here = sharding.within((DATA,))
        grads, parts = gradients(here, params, layer_state, batch, *others)
        sums = jax.lax.psum(parts.sums, DATA)
        sinks = across(parts.sinks, here.apart)
        of_replicas = jax.lax.all_gather(parts.layer_state, DATA)
        whole = Parts(sums, states.merged(layer_state, of_replicas), sinks)
        return jax.tree.map(_added_up, grads, cuts), whole

    return whole


def _added_up(grad: jax.Array, cut: PartitionSpec) -> jax.Array:
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    if DATA not in cut:
        return jax.lax.psum(grad, DATA)
    dim = cut.index(DATA)
    return jax.lax.psum_scatter(grad, DATA, scatter_dimension=dim, tiled=True)
