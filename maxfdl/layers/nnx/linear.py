"""Linear projections.

Dims: I contracted dims of the input, O dims of the output; each may be several, so
that a projection to heads has the kernel [D, H, K].
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx
from jax.typing import DTypeLike

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import Constant, Initializer

Dims = dict[str, int]


class Linear(Module):
    """`y = x kernel + bias`, over named dims.

    Holds `prod(I) prod(O)` weights and spends twice that in FLOPs per token.

    Args:
      dot: The matrix product.
      initializer: How the kernel is drawn.
      use_bias: Whether to add a bias, which starts at 0.
      inputs: Name and size of each contracted dim, the last dims of `x`.
      outputs: Name and size of each dim of the result.
    """

    def __init__(
        self,
        *,
        dot: Dot,
        initializer: Initializer,
        use_bias: bool = False,
        inputs: Annotated[Dims, FromParent],
        outputs: Annotated[Dims, FromParent],
        rngs: nnx.Rngs,
    ):
        self.dot = dot
        self.kernel_axes = (*inputs, *outputs)
        self.bias_axes = tuple(outputs)
        self.contracted = len(inputs)
        shape = (*inputs.values(), *outputs.values())
        self.kernel = param(
            Parameter(shape, self.kernel_axes, initializer, "kernel", self.contracted),
            rngs,
        )
        bias = Parameter(tuple(outputs.values()), self.bias_axes, Constant(), "bias")
        self.bias = param(bias, rngs) if use_bias else None

    def ready(self, dtype: DTypeLike, context: Context) -> jax.Array:
        """Returns the kernel ready for use, [*inputs, *outputs]."""
        return context.weight(self.kernel[...], self.kernel_axes, dtype=dtype)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        y = self.dot(x, self.ready(x.dtype, context), contract=self.contracted)
        if self.bias is not None:
            y = y + context.weight(self.bias[...], self.bias_axes, dtype=x.dtype)
        return y


class LowRankLinear(Module):
    """`up(norm(down(x)))`: a projection through `rank` features.

    Holds `rank (prod(I) + prod(O))` weights and those of the norm.

    Args:
      down, norm, up: The parts.
      rank: Features in the middle.
      inputs: Name and size of each contracted dim, the last dims of `x`.
      outputs: Name and size of each dim of the result.
    """

    def __init__(
        self,
        *,
        down: Callable[..., Linear],
        norm: Callable[..., Module],
        up: Callable[..., Linear],
        rank: int,
        inputs: Annotated[Dims, FromParent],
        outputs: Annotated[Dims, FromParent],
        rngs: nnx.Rngs,
    ):
        middle = {"rank": rank}
        self.down = down(inputs=inputs, outputs=middle, rngs=rngs)
        self.norm = norm(features=rank, rngs=rngs)
        self.up = up(inputs=middle, outputs=outputs, rngs=rngs)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = self.norm(self.down(x, context.at("down")), context.at("norm"))
        return self.up(x, context.at("up"))
