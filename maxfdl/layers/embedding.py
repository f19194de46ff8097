"""Embeddings of tokens and of positions."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Weight, with_parts
from maxfdl.layers.look_up import look_up
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Initializer


class Embedding(Layer):
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

    def make(self, maker: Maker):
        dims = {"vocab": self.vocab_size, "embed": self.features}
        maker.parameter(
            "table", Parameter.of_dims(dims, init=self.initializer, role="embedding")
        )

    @with_parts
    def stored(self, parts) -> Weight:
        """Returns the [V, D] table as it is stored."""
        return parts.table

    @with_parts
    def __call__(self, parts, tokens: jax.Array, context: Context) -> jax.Array:
        x = look_up(parts.table.ready(context, self.dtype), tokens, context)
        return context.constrain(x, "batch", "residual", "embed")


class ScaledEmbedding(Embedding):
    """Rows come out `sqrt(features)` times as long as they lie in the table."""

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        x = super().__call__(tokens, context)
        return x * jnp.asarray(math.sqrt(x.shape[-1]), x.dtype)


class PositionEmbedding(Layer):
    """A learned vector for each of `length` positions, added to that of the token.

    Args:
      initializer: How the table is drawn.
      length: Positions that a document may have.
      features: D, width of a row.
    """

    initializer: Initializer
    length: int
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        dims = {"positions": self.length, "embed": self.features}
        maker.parameter(
            "table", Parameter.of_dims(dims, init=self.initializer, role="embedding")
        )

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        table = parts.table.ready(context, x.dtype)
        return x + jnp.take(table, context.positions, axis=0, mode="clip")
