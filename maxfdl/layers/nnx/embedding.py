"""Token embeddings."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Initializer


class Embedding(Module):
    """A learned vector of width `features` for each of `vocab_size` tokens.

    Args:
      initializer: How the table is drawn.
      vocab_size: V, rows of the table.
      features: D, width of a row.
      dtype: Type of the result, and so of all activations that follow.
    """

    def __init__(
        self,
        *,
        initializer: Initializer,
        vocab_size: Annotated[int, FromParent],
        features: Annotated[int, FromParent],
        dtype: Annotated[str, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.table = param(
            Parameter(
                (vocab_size, features), ("vocab", "embed"), initializer, "embedding"
            ),
            rngs,
        )

    def weights(self, context: Context) -> jax.Array:
        """Returns the [V, D] table ready for use in the compute type."""
        return context.weight(self.table[...], ("vocab", "embed"), self.dtype)

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        x = jnp.take(self.weights(context), tokens, axis=0)
        return context.constrain(x, "batch", "sequence", "embed")
