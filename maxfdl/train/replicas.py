"""Gradients of each device's rows, computed apart and added up.

The mesh axes `Sharding.parallel`, `data` and `fsdp` by default, are manual: a
`shard_map` computes the gradients of the rows of each shard. A weight that they cut is
gathered where it is used, and its gradient comes back by a reduce-scatter there, layer
by layer: fully sharded data parallelism. What is whole on each shard is added up once,
after the last microbatch, by `psum` or `psum_scatter`. Where `fsdp` is one slice and
`data` goes across slices, that is hybrid sharding: each network moves as little as it
can. Along the other mesh axes, which are automatic, XLA shards arrays and inserts
collectives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxfdl.layers.sinks import across
from maxfdl.ops.state import States
from maxfdl.sharding.rings import reduce_scatter
from maxfdl.sharding.sharding import Sharding
from maxfdl.sharding.spec import names_of
from maxfdl.train.gradients import Parts

Gradients = Callable[..., tuple[Any, Parts]]


class Shares(NamedTuple):
    """Which part of parameters and gradients a shard of the rows has.

    Fields, trees of specs that name the axes `Sharding.parallel` alone: `params`, how
    each parameter is stored; `trained`, those of the trained ones; `gradients`, how
    gradients leave, which may be cut further (ZeRO-1).
    """

    params: Any
    trained: Any
    gradients: Any


def on_replicas(
    gradients: Gradients, sharding: Sharding, shares: Shares, states: States
) -> Gradients:
    """Returns `gradients` of the whole batch, a function of arrays alone.

    Args:
      gradients: `gradients(sharding, params, layer_state, batch, *others)` of the rows
        that one shard has.
      sharding: Of the whole program.
      shares: Of each shard. A gradient that leaves cut further than its parameter is
        stored costs one reduce-scatter of its float32 bytes, one that leaves whole an
        all-reduce.
      states: Makes one of the states of layers that the shards leave.
    """
    axes = sharding.parallel

    def whole(params, layer_state, batch, *others):
        if not axes:
            return gradients(sharding, params, layer_state, batch, *others)
        grads_and_parts = jax.shard_map(
            of_shard,
            mesh=sharding.mesh,
            in_specs=(
                shares.params,
                PartitionSpec(),
                sharding.spec(("batch",), only=axes),
                *[PartitionSpec()] * len(others),
            ),
            out_specs=(shares.gradients, PartitionSpec()),
            axis_names=set(axes),
            check_vma=False,
        )
        return grads_and_parts(params, layer_state, batch, *others)

    def of_shard(params, layer_state, batch, *others):
        here = sharding.within(axes)
        grads, parts = gradients(here, params, layer_state, batch, *others)
        sums = lax.psum(parts.sums, axes)
        sinks = across(parts.sinks, axes)
        of_shards = lax.all_gather(parts.layer_state, axes)
        whole = Parts(sums, states.merged(layer_state, of_shards), sinks)

        def added_up(grad: jax.Array, stored: PartitionSpec, leaves: PartitionSpec):
            return _added_up(here, grad, stored, leaves)

        return jax.tree.map(added_up, grads, shares.trained, shares.gradients), whole

    return whole


def _added_up(
    sharding: Sharding, grad: jax.Array, stored: PartitionSpec, leaves: PartitionSpec
) -> jax.Array:
    """Adds a gradient up over the axes that its parameter was not gathered along."""
    done = {name for entry in stored for name in names_of(entry)}
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    for dim, entry in enumerate(leaves):
        for name in names_of(entry):
            if name not in done:
                grad = reduce_scatter(grad, name, dim, sharding.rings(name))
                done.add(name)
    left = [axis for axis in sharding.apart if axis not in done]
    return lax.psum(grad, left) if left else grad
