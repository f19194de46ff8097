"""Heads: where the weights that make logits come from.

`scale` multiplies the logits and `soft_cap` bounds them, see `ops.unembedding`.
"""

from typing import Annotated

import jax

from maxfdl.errors import UserError
from maxfdl.layers.checks import check_head
from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Weight, with_parts
from maxfdl.layers.parameter import DType, Parameter
from maxfdl.layers.product import make_kernel, packed_kernel
from maxfdl.markers import FromParent
from maxfdl.ops.codec import Codec, PackedKernel
from maxfdl.ops.dot import MatrixProduct
from maxfdl.ops.initializers import Initializer
from maxfdl.ops.unembedding import Unembedding
from maxfdl.sharding.memory import on_device


class Head(Layer):
    """A kernel of its own, [D, V]; with a `storage` it is packed, and not trained."""

    check_config = staticmethod(check_head)

    dot: MatrixProduct
    initializer: Initializer
    storage: Codec | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]
    dtype: Annotated[str, FromParent]

    def make(self, maker: Maker):
        dims = {"embed": self.features, "vocab": self.vocab_size}
        kernel = Parameter.of_dims(
            dims, init=self.initializer, role="kernel", contracted=1
        )
        make_kernel(maker, self.dot, kernel, self.storage)

    @with_parts
    def __call__(self, parts, table_VD: Weight, context: Context) -> Unembedding:
        declared = parts.kernel.declared
        if declared.packing is None:
            return _unembedding(self, parts.kernel.stored, declared, context)
        kernel = packed_kernel(parts, lambda weight: weight.ready(context))
        return _unembedding(self, kernel, declared.whole, context)


class TiedHead(Layer):
    """The embedding table, transposed (Press & Wolf 2017).

    Args:
      rounded: Type that the table is rounded to before the product, whatever type that
        is in: MaxText rounds to bfloat16. None uses the table as it is stored.
    """

    check_config = staticmethod(check_head)

    dot: MatrixProduct
    rounded: DType | None = None
    scale: float = 1.0
    soft_cap: float | None = None
    features: Annotated[int, FromParent]
    vocab_size: Annotated[int, FromParent]
    dtype: Annotated[str, FromParent]

    def __call__(self, table_VD: Weight, context: Context) -> Unembedding:
        table = table_VD.stored
        if self.rounded is not None:
            table = table.astype(self.rounded)
        return _unembedding(self, table, table_VD.declared, context)


def _unembedding(
    head: Head | TiedHead,
    weights: jax.Array | PackedKernel,
    declared: Parameter,
    context: Context,
) -> Unembedding:
    """Returns `weights` with what a head does with them.

    Raises:
      UserError: If the product of the head keeps state.
    """
    if head.dot.declare(declared):
        raise UserError(
            f"{type(head).__name__} dot ({type(head.dot).__name__}) must be a product"
            " that keeps no state, for logits are formed after the layers have run;"
            " leave the head its plain dot."
        )
    return Unembedding(
        weights=on_device(weights),
        axes=declared.axes,
        dtype=head.dtype,
        dot=head.dot,
        scale=head.scale,
        soft_cap=head.soft_cap,
        sharding=context.sharding,
    )
