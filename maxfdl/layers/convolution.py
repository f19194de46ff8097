"""Convolutions over the tokens of a row."""

from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.checks import check_convolution
from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.convolution import causal_convolution, convolution_of_shards
from maxfdl.ops.initializers import Initializer

Dims = dict[str, int]


class CausalConvolution(Layer):
    """Each channel sums over the last tokens, see `ops.convolution`.

    Holds `width prod(channels)` weights. Its cache is the last `width - 1` inputs.

    Args:
      width: Tokens that are summed over, the current one included.
      initializer: How the kernel is drawn.
      channels: Name and size of each dim of a token.
    """

    check_config = staticmethod(check_convolution)

    width: int
    initializer: Initializer
    channels: Annotated[Dims, FromParent]

    def make(self, maker: Maker):
        dims = {"taps": self.width, **self.channels}
        kernel = Parameter.of_dims(
            dims, init=self.initializer, role="kernel", contracted=1
        )
        maker.parameter("kernel", kernel)

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        kernel = parts.kernel.ready(context, x.dtype)
        shape = (x.shape[0], self.width - 1, *x.shape[2:])
        before = context.cached(lambda length: jnp.zeros(shape, x.dtype))
        if before is None:
            _, *channels = parts.kernel.declared.axes
            return convolution_of_shards(
                x, kernel, context.places, context.sharding, channels
            )
        y, last = causal_convolution(x, kernel, context.places, before)
        context.store(last)
        return y
