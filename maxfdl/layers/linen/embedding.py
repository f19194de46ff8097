"""Token embeddings."""

from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Initializer


class Embedding(Module, kw_only=True):
    """A learned vector of width `features` for each of `vocab_size` tokens.

    Args:
      initializer: How the table is drawn.
      vocab_size: V, rows of the table.
      features: D, width of a row.
      dtype: Type of the result, and so of all activations that follow.
    """

    initializer: Initializer
    vocab_size: Annotated[int, FromParent]
    features: Annotated[int, FromParent]
    dtype: Annotated[str, FromParent]

    def setup(self):
        shape = (self.vocab_size, self.features)
        self.table = param(
            self,
            "table",
            Parameter(shape, ("vocab", "embed"), self.initializer, "embedding"),
        )

    def weights(self, context: Context) -> jax.Array:
        """Returns the [V, D] table ready for use in the compute type."""
        return context.weight(self.table, ("vocab", "embed"), self.dtype)

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        x = jnp.take(self.weights(context), tokens, axis=0)
        return context.constrain(x, "batch", "sequence", "embed")
