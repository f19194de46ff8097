"""Linear projections.

Dims: I contracted dims of the input, O dims of the output; each may be several, so
that a projection to heads has the kernel [D, H, K].
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import linen as nn
from jax.typing import DTypeLike

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import Constant, Initializer

Dims = dict[str, int]


class Linear(Module, kw_only=True):
    """`y = x kernel + bias`, over named dims.

    Holds `prod(I) prod(O)` weights and spends twice that in FLOPs per token.

    Args:
      dot: The matrix product.
      initializer: How the kernel is drawn.
      use_bias: Whether to add a bias, which starts at 0.
      inputs: Name and size of each contracted dim, the last dims of `x`.
      outputs: Name and size of each dim of the result.
    """

    dot: Dot
    initializer: Initializer
    use_bias: bool = False
    inputs: Annotated[Dims, FromParent]
    outputs: Annotated[Dims, FromParent]

    def setup(self):
        self.kernel_axes = (*self.inputs, *self.outputs)
        self.bias_axes = tuple(self.outputs)
        self.contracted = len(self.inputs)
        shape = (*self.inputs.values(), *self.outputs.values())
        self.kernel = param(
            self,
            "kernel",
            Parameter(
                shape, self.kernel_axes, self.initializer, "kernel", self.contracted
            ),
        )
        shape = tuple(self.outputs.values())
        bias = Parameter(shape, self.bias_axes, Constant(), "bias")
        self.bias = param(self, "bias", bias) if self.use_bias else None

    def ready(self, dtype: DTypeLike, context: Context) -> jax.Array:
        """Returns the kernel ready for use, [*inputs, *outputs]."""
        return context.weight(self.kernel, self.kernel_axes, dtype=dtype)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        y = self.dot(x, self.ready(x.dtype, context), contract=self.contracted)
        if self.bias is not None:
            y = y + context.weight(self.bias, self.bias_axes, dtype=x.dtype)
        return y


class LowRankLinear(Module, kw_only=True):
    """`up(norm(down(x)))`: a projection through `rank` features.

    Holds `rank (prod(I) + prod(O))` weights and those of the norm.

    Args:
      down, norm, up: The parts.
      rank: Features in the middle.
      inputs: Name and size of each contracted dim, the last dims of `x`.
      outputs: Name and size of each dim of the result.
    """

    down: Callable[..., Linear]
    norm: Callable[..., Module]
    up: Callable[..., Linear]
    rank: int
    inputs: Annotated[Dims, FromParent]
    outputs: Annotated[Dims, FromParent]

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        middle = {"rank": self.rank}
        down = self.down(inputs=self.inputs, outputs=middle, name="down")
        norm = self.norm(features=self.rank, name="norm")
        up = self.up(inputs=middle, outputs=self.outputs, name="up")

        x = norm(down(x, context.at("down")), context.at("norm"))
        return up(x, context.at("up"))
