"""Heads: where the weights that make logits come from.

`scale` multiplies the logits and `soft_cap` bounds them, see `ops.unembedding`.
"""

from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.unembed import unembedding_of
from maxfdl.markers import FromParent
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.unembedding import Unembedding


class Head(Module):
    """A kernel of its own, [D, V]."""

    def __init__(
        self,
        *,
        dot: Dot,
        initializer: Initializer,
        scale: float = 1.0,
        soft_cap: float | None = None,
        features: Annotated[int, FromParent],
        vocab_size: Annotated[int, FromParent],
        dtype: Annotated[str, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dot = dot
        self.scale = scale
        self.soft_cap = soft_cap
        self.dtype = dtype
        self.kernel = param(
            Parameter(
                (features, vocab_size), ("embed", "vocab"), initializer, "kernel", 1
            ),
            rngs,
        )

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return unembedding_of(self, self.kernel[...], ("embed", "vocab"), context)


class TiedHead(Module):
    """The embedding table, transposed (Press & Wolf 2017)."""

    def __init__(
        self,
        *,
        dot: Dot,
        scale: float = 1.0,
        soft_cap: float | None = None,
        features: Annotated[int, FromParent],
        vocab_size: Annotated[int, FromParent],
        dtype: Annotated[str, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dot = dot
        self.scale = scale
        self.soft_cap = soft_cap
        self.dtype = dtype

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return unembedding_of(self, table_VD, ("vocab", "embed"), context)
