"""Rows of a table by number, for embeddings of both families."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from maxfdl.layers.context import Context


def look_up(table_VD: jax.Array, tokens: jax.Array, context: Context) -> jax.Array:
    """Returns [*tokens, D], the row of each token.

    Where a mesh cuts the vocabulary, each part looks up the tokens that it holds, and
    the sum over parts, of which all but one are 0, is the row: Megatron's, Shoeybi et
    al. 2019. XLA would do the same by itself, but that of JAX 0.12 aborts if replicas
    run apart.
    """
    sharding = context.sharding
    if sharding is None:
        return jnp.take(table_VD, tokens, axis=0)
    (cut,) = sharding.spec_in_use(("vocab",))
    if cut is None:
        return jnp.take(table_VD, tokens, axis=0)

    def of_part(table, tokens):
        here = tokens - lax.axis_index(cut) * table.shape[0]
        is_here = (here >= 0) & (here < table.shape[0])
        rows = jnp.take(table, here, axis=0, mode="clip")
        return jnp.where(is_here[..., None], rows, 0)[None]

    parts = jax.shard_map(
        of_part,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec(cut), PartitionSpec()),
        out_specs=PartitionSpec(cut),
        axis_names={cut} if isinstance(cut, str) else set(cut),
        check_vma=False,
    )(table_VD, tokens)
    return jnp.sum(parts, axis=0)
