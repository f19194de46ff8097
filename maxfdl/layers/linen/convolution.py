"""Convolutions over the tokens of a row."""

from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.checks import check_convolution
from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.convolution import causal_convolution
from maxfdl.ops.initializers import Initializer

Dims = dict[str, int]


class CausalConvolution(Module, kw_only=True):
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

    def setup(self):
        self.kernel_axes = ("taps", *self.channels)
        shape = (self.width, *self.channels.values())
        self.kernel = param(
            self,
            "kernel",
            Parameter(
                shape, self.kernel_axes, self.initializer, "kernel", contracted=1
            ),
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        kernel = context.weight(self.kernel, self.kernel_axes, dtype=x.dtype)
        shape = (x.shape[0], kernel.shape[0] - 1, *x.shape[2:])
        before = context.cached(lambda length: jnp.zeros(shape, x.dtype))
        y, last = causal_convolution(x, kernel, context.places, before)
        if before is not None:
            context.store(last)
        return y
