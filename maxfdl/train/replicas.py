"""Gradients on replicas of the model: each on rows of its own, added up once.

Replicas stand along one mesh axis (`REPLICAS`). Along the others XLA places arrays and
their collectives by itself; along this one nothing crosses the mesh until the gradients
of all microbatches are there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from maxfdl.layers.sinks import across
from maxfdl.ops.state import States
from maxfdl.sharding.sharding import REPLICAS, Sharding
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
      cuts: Specs like the gradients, of the dims that replicas share out among them;
        a gradient without one is whole on each. Costs one reduce-scatter, or one
        all-reduce, of its float32 bytes.
      states: Make one of the states of the layers that the replicas leave.
    """

    def whole(params, layer_state, batch, *others):
        if sharding.num_replicas == 1:
            return gradients(sharding, params, layer_state, batch, *others)
        grads_and_parts = jax.shard_map(
            of_replica,
            mesh=sharding.mesh,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(),
                PartitionSpec(REPLICAS),
                *[PartitionSpec()] * len(others),
            ),
            out_specs=(cuts, PartitionSpec()),
            axis_names={REPLICAS},
            check_vma=False,
        )
        return grads_and_parts(params, layer_state, batch, *others)

    def of_replica(params, layer_state, batch, *others):
        here = sharding.within((REPLICAS,))
        grads, parts = gradients(here, params, layer_state, batch, *others)
        sums = jax.lax.psum(parts.sums, REPLICAS)
        sinks = across(parts.sinks, here.apart)
        of_replicas = jax.lax.all_gather(parts.layer_state, REPLICAS)
        whole = Parts(sums, states.merged(layer_state, of_replicas), sinks)
        return jax.tree.map(_added_up, grads, cuts), whole

    return whole


def _added_up(grad: jax.Array, cut: PartitionSpec) -> jax.Array:
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    if REPLICAS not in cut:
        return jax.lax.psum(grad, REPLICAS)
    dim = cut.index(REPLICAS)
    return jax.lax.psum_scatter(grad, REPLICAS, scatter_dimension=dim, tiled=True)
