"""Embeddings of tokens and of positions."""

import math
from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.look_up import look_up
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

    def stored(self) -> jax.Array:
        """Returns the [V, D] table as it is stored."""
        return self.table

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        table = context.weight(self.table, ("vocab", "embed"), self.dtype)
        x = look_up(table, tokens, context)
        return context.constrain(x, "batch", "sequence", "embed")


class ScaledEmbedding(Embedding, kw_only=True):
    """Rows come out `sqrt(features)` times as long as they lie in the table."""

    def __call__(self, tokens: jax.Array, context: Context) -> jax.Array:
        x = super().__call__(tokens, context)
        return x * jnp.asarray(math.sqrt(x.shape[-1]), x.dtype)


class PositionEmbedding(Module, kw_only=True):
    """A learned vector for each of `length` positions, added to that of the token.

    Args:
      initializer: How the table is drawn.
      length: Positions that a document may have.
      features: D, width of a row.
    """

    initializer: Initializer
    length: int
    features: Annotated[int, FromParent]

    def setup(self):
        shape, axes = (self.length, self.features), ("positions", "embed")
        table = Parameter(shape, axes, self.initializer, "embedding")
        self.table = param(self, "table", table)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        table = context.weight(self.table, ("positions", "embed"), x.dtype)
        return x + jnp.take(table, context.positions, axis=0, mode="clip")
