"""Heads: where the weights that make logits come from.

`scale` multiplies the logits and `soft_cap` bounds them, see `ops.unembedding`.
"""

from typing import Annotated

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.unembed import unembedding_of
from maxfdl.markers import FromParent
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.unembedding import Unembedding


class Head(Module, kw_only=True):
    """A kernel of its own, [D, V]."""

    dot: Dot
    initializer: Initializer
    scale: float = 1.0
    soft_cap: float | None = None
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]
    dtype: Annotated[str, FromParent]

    def setup(self):
        shape = (self.features, self.vocab_size)
        self.kernel = param(
            self,
            "kernel",
            Parameter(shape, ("embed", "vocab"), self.initializer, "kernel", 1),
        )

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return unembedding_of(self, self.kernel, ("embed", "vocab"), context)


class TiedHead(Module, kw_only=True):
    """The embedding table, transposed (Press & Wolf 2017)."""

    dot: Dot
    scale: float = 1.0
    soft_cap: float | None = None
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]
    dtype: Annotated[str, FromParent]

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return unembedding_of(self, table_VD, ("vocab", "embed"), context)
