"""Heads: where the weights that make logits come from."""

from typing import Annotated

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.unembedding import Unembedding


class Head(Module, kw_only=True):
    """A kernel of its own, [D, V]."""

    dot: Dot
    initializer: Initializer
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]

    def setup(self):
        shape = (self.features, self.vocab_size)
        self.kernel = param(
            self,
            "kernel",
            Parameter(shape, ("embed", "vocab"), self.initializer, "kernel", 1),
        )

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        kernel = context.weight(self.kernel, ("embed", "vocab"), dtype=table_VD.dtype)
        return Unembedding(kernel, self.dot)


class TiedHead(Module, kw_only=True):
    """The embedding table, transposed (Press & Wolf 2017)."""

    dot: Dot
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return Unembedding(table_VD.T, self.dot)
