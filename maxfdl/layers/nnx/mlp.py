"""Position-wise feed-forward layers.

Letters: B rows, T tokens, D residual width, F hidden width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.module import Module
from maxfdl.markers import FromParent
from maxfdl.ops.activation import Activation, activate


class GatedMlp(Module):
    """`down(act(gate(x)) * up(x))`: with `silu`, FFN_SwiGLU of Shazeer 2020,
    https://arxiv.org/abs/2002.05202.

    Holds `3 D F` weights and spends `6 D F` FLOPs per token.

    Args:
      hidden: F; no 2/3 factor and no rounding happens here.
    """

    def __init__(
        self,
        *,
        gate: Callable[..., Linear],
        up: Callable[..., Linear],
        down: Callable[..., Linear],
        hidden: int,
        activation: Activation = "silu",
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.activation: Activation = activation
        outer, inner = {"embed": features}, {"mlp": hidden}
        self.gate = gate(inputs=outer, outputs=inner, rngs=rngs)
        self.up = up(inputs=outer, outputs=inner, rngs=rngs)
        self.down = down(inputs=inner, outputs=outer, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        gate_BTF = activate(self.activation, self.gate(x_BTD, context.at("gate")))
        hidden_BTF = gate_BTF * self.up(x_BTD, context.at("up"))
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return self.down(hidden_BTF, context.at("down"))
