"""The outer optimizer of DiLoCo, and the mean of what replicas have learnt.

The delta of a replica is what it has moved since the last sync: outer weights minus its
own. To the outer optimizer, the mean delta is the gradient.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import WarmupConstant
from maxfdl.optim.transforms import UpdateRule
from maxfdl.sharding.mesh import REPLICA
from maxfdl.sharding.sharding import DATA, Sharding
from maxfdl.train.exchange import Exchange, exchanged


@dataclasses.dataclass(frozen=True)
class Outer:
    """`params -= learning_rate * rule(mean delta)`, in float32, at each sync.

    Args:
      rule: Any rule that the inner optimizer may have. DiLoCo's is SGD with Nesterov
        momentum 0.9.
      learning_rate: 0.7 in DiLoCo. With 1 and SGD without momentum, the outer weights
        become the mean of the replicas' (FedAvg, McMahan et al. 2017).
    """

    rule: UpdateRule
    learning_rate: float = 0.7

    @staticmethod
    def check_config(node):
        if node.learning_rate <= 0:
            yield f"Outer learning_rate ({node.learning_rate}) must be positive."

    def optimizer(self, parameters: dict) -> Optimizer:
        """Returns the optimizer of parameters with these declarations."""
        return Optimizer(
            clip=None,
            rule=self.rule,
            weight_decay=None,
            schedule=WarmupConstant(peak=self.learning_rate),
            parameters=parameters,
            steps=1,
        )


class Delta(NamedTuple):
    """The mean delta, with what is known of those that it is the mean of.

    Fields: `mean`, a tree like the parameters, in float32; `norms`, [R] L2 norm of the
    delta of each replica; `lengths`, [R] those of what each has sent of it, with what
    was left over before; `shares`, [R] weights of the mean, which add up to 1;
    `errors`, [R, ...] what the replicas could not send, or nothing if it is not kept.
    """

    mean: Any
    norms: Any
    lengths: Any
    shares: Any
    errors: Any

    @property
    def is_any(self) -> jax.Array:
        """Whether any replica has a share."""
        return jnp.any(self.shares > 0)

    def cosine(self) -> jax.Array:
        """Returns the mean cosine between deltas of two replicas; 0 for one replica.

        A pair counts by the product of its shares and norms, so that nothing but the
        mean and the norms is needed. For two replicas it is their cosine.
        """
        lengths = self.shares * jnp.where(self.shares > 0, self.lengths, 0.0)
        own = jnp.sum(jnp.square(lengths))
        pairs = jnp.square(jnp.sum(lengths)) - own
        products = _square(self.mean) - own
        return jnp.where(pairs > 0, products / jnp.where(pairs > 0, pairs, 1.0), 0.0)


def deltas(outer: Any, inner: Any) -> Any:
    """Returns the delta of each replica, [R, ...], in float32.

    Args:
      outer: Weights that the replicas went on from, [...] or [R, ...].
      inner: Those of the replicas, [R, ...].
    """
    return jax.tree.map(lambda o, i: _wide(o) - _wide(i), outer, inner)


def mean_delta(
    sharding: Sharding,
    cuts: Any,
    deltas: Any,
    weights: jax.Array,
    exchange: Exchange | None = None,
    errors: Any = None,
) -> Delta:
    """Returns the mean delta: one exchange between replicas.

    Args:
      sharding: Of the whole program.
      cuts: Specs of the dims along which the mean is sharded over replicas, a tree like
        the parameters. A parameter costs one all-reduce, or, with such a dim and no
        other axis in the mesh, one reduce-scatter. Without `exchange` alone.
      deltas: Of each replica, [R, ...] in float32.
      weights: [R] by which replicas count; 0 leaves one out.
      exchange: How deltas are sent; None sends float32.
      errors: [R, ...] what replicas could not send before, if `exchange` keeps it.
    """

    def of_group(deltas, weights, errors):
        total = psum(jnp.sum(weights))
        shares = weights / jnp.where(total > 0, total, 1.0)
        norms = jnp.sqrt(jax.vmap(_square)(deltas))
        if exchange is None:
            sums = jax.tree.map(lambda delta: _weighted(shares, delta), deltas)
            mean = jax.tree.map(added_up, sums, cuts)
            return Delta(mean, norms, norms, shares, {})
        deltas = jax.tree.map(lambda delta: _of_those_with(shares, delta), deltas)
        decay = exchange.error_decay
        if decay is not None:
            deltas = jax.tree.map(lambda d, error: d + decay * error, deltas, errors)
        axes = [a for a in sharding.mesh.axis_names if a not in (REPLICA, DATA)]
        send = functools.partial(
            exchanged, exchange, shares=shares, cut_by=axes if is_cut else None
        )
        found = jax.tree.map(send, deltas)
        mean = jax.tree.map(lambda _, pair: pair[0], deltas, found)
        sent = jax.tree.map(lambda _, pair: pair[1], deltas, found)
        left = {} if decay is None else jax.tree.map(jnp.subtract, deltas, sent)
        return Delta(mean, norms, jnp.sqrt(jax.vmap(_square)(sent)), shares, left)

    def psum(x):
        return lax.psum(x, REPLICA) if is_cut else x

    def added_up(x: jax.Array, cut: PartitionSpec) -> jax.Array:
        if not is_cut or REPLICA not in cut:
            return psum(x)
        dim = cut.index(REPLICA)
        if has_no_other_axis:
            return lax.psum_scatter(x, REPLICA, scatter_dimension=dim, tiled=True)
        # XLA gathers what other axes shard before a reduce-scatter, and not before an
        # all-reduce.
        size = x.shape[dim] // groups
        start = lax.axis_index(REPLICA) * size
        return lax.dynamic_slice_in_dim(psum(x), start, size, dim)

    groups = sharding.size(REPLICA)
    is_cut, has_no_other_axis = groups > 1, groups == sharding.mesh.size
    if not is_cut:
        return of_group(deltas, weights, errors)
    apart: Any = PartitionSpec(REPLICA)
    return jax.shard_map(
        of_group,
        mesh=sharding.mesh,
        in_specs=(apart, apart, apart),
        out_specs=Delta(
            PartitionSpec() if exchange else cuts, apart, apart, apart, apart
        ),
        axis_names={REPLICA},
        check_vma=False,
    )(deltas, weights, errors)


def _weighted(shares: jax.Array, deltas: jax.Array) -> jax.Array:
    """Returns the sum of `deltas` times their shares; what has none may be NaN."""
    of_each = shares.reshape(-1, *[1] * (deltas.ndim - 1))
    return jnp.sum(of_each * _of_those_with(shares, deltas), axis=0)


def _of_those_with(shares: jax.Array, deltas: jax.Array) -> jax.Array:
    """Returns the deltas of replicas that have a share, and 0 for the others."""
    shares = shares.reshape(-1, *[1] * (deltas.ndim - 1))
    return jnp.where(shares > 0, deltas, 0.0)


def _square(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros(()))


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
