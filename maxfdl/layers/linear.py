"""Linear projections.

Dims: I contracted dims of the input, O dims of the output; each may be several, so
that a projection to heads has the kernel [D, H, K].
"""

from collections.abc import Callable
from typing import Annotated

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.product import make_kernel, multiply
from maxfdl.markers import FromParent
from maxfdl.ops.codec import Codec, Simulated
from maxfdl.ops.dot import MatrixProduct
from maxfdl.ops.initializers import Constant, Initializer

Dims = dict[str, int]


class Linear(Layer):
    """`y = x kernel + bias`, over named dims.

    Holds `prod(I) prod(O)` weights and spends twice that in FLOPs per token.

    Args:
      dot: The matrix product.
      initializer: How the kernel is drawn.
      storage: How the kernel is stored in a few bits, and not trained, or for what
        storage it is trained; None: as one array of numbers.
      use_bias: Whether to add a bias, which starts at 0.
      inputs: Name and size of each contracted dim, the last dims of `x`.
      outputs: Name and size of each dim of the result.
    """

    dot: MatrixProduct
    initializer: Initializer
    storage: Codec | Simulated | None = None
    use_bias: bool = False
    inputs: Annotated[Dims, FromParent]
    outputs: Annotated[Dims, FromParent]

    def make(self, maker: Maker):
        kernel = Parameter.of_dims(
            self.inputs,
            self.outputs,
            init=self.initializer,
            role="kernel",
            contracted=len(self.inputs),
        )
        bias = Parameter.of_dims(self.outputs, init=Constant(), role="bias")
        make_kernel(maker, self.dot, kernel, self.storage)
        maker.parameter("bias", bias if self.use_bias else None)

    @with_parts
    def einsum(self, parts, equation: str, x: jax.Array, context: Context) -> jax.Array:
        """Returns another product of `x` and the kernel, [*inputs, *outputs]."""
        return multiply(self.dot, parts, x, context, equation=equation)

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        contract = parts.kernel.declared.whole.contracted
        y = multiply(self.dot, parts, x, context, contract=contract)
        return y if parts.bias is None else y + parts.bias.ready(context, x.dtype)


class LowRankLinear(Layer):
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

    def make(self, maker: Maker):
        middle = {"rank": self.rank}
        maker.child("down", self.down, inputs=self.inputs, outputs=middle)
        maker.child("norm", self.norm, features=self.rank)
        maker.child("up", self.up, inputs=middle, outputs=self.outputs)

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        x = parts.norm(parts.down(x, context.at("down")), context.at("norm"))
        return parts.up(x, context.at("up"))
