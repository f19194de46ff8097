"""Heads: where the weights that make logits come from."""

from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
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
        features: Annotated[int, FromParent],
        vocab_size: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dot = dot
        self.kernel = param(
            Parameter(
                (features, vocab_size), ("embed", "vocab"), initializer, "kernel", 1
            ),
            rngs,
        )

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        kernel = context.weight(
            self.kernel[...], ("embed", "vocab"), dtype=table_VD.dtype
        )
        return Unembedding(kernel, self.dot)


class TiedHead(Module):
    """The embedding table, transposed (Press & Wolf 2017)."""

    def __init__(
        self,
        *,
        dot: Dot,
        features: Annotated[int, FromParent],
        vocab_size: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dot = dot

    def __call__(self, table_VD: jax.Array, context: Context) -> Unembedding:
        return Unembedding(table_VD.T, self.dot)
