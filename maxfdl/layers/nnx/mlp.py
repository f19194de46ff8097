"""Position-wise feed-forward layers.

Letters: B rows, T tokens, D residual width, F hidden width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.module import Module
from maxfdl.markers import FromParent
from maxfdl.ops.activation import Activation, activate
from maxfdl.ops.glu import ClampedSwiGlu, Glu


class GatedMlp(Module):
    """`down(glu(gate(x), up(x)))`: with `silu`, FFN_SwiGLU of Shazeer 2020,
    https://arxiv.org/abs/2002.05202.

    Holds `3 D F` weights and spends `6 D F` FLOPs per token.

    Args:
      hidden: F; no 2/3 factor and no rounding happens here.
      glu: How gate and value make a hidden feature.
    """

    named_tensors = ("mlp_gate", "mlp_up", "mlp_down")

    def __init__(
        self,
        *,
        gate: Callable[..., Linear],
        up: Callable[..., Linear],
        down: Callable[..., Linear],
        hidden: int,
        glu: Glu | ClampedSwiGlu,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.glu = glu
        outer, inner = {"embed": features}, {"mlp": hidden}
        self.gate = gate(inputs=outer, outputs=inner, rngs=rngs)
        self.up = up(inputs=outer, outputs=inner, rngs=rngs)
        self.down = down(inputs=inner, outputs=outer, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        gate_BTF = checkpoint_name(self.gate(x_BTD, context.at("gate")), "mlp_gate")
        up_BTF = checkpoint_name(self.up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = self.glu(gate_BTF, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(self.down(hidden_BTF, context.at("down")), "mlp_down")


class Mlp(Module):
    """`down(act(up(x)))`: the feed-forward layer of Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762.

    Holds `2 D F` weights and spends `4 D F` FLOPs per token.

    Args:
      hidden: F.
      activation: Name of the function between the projections.
    """

    named_tensors = ("mlp_up", "mlp_down")

    def __init__(
        self,
        *,
        up: Callable[..., Linear],
        down: Callable[..., Linear],
        hidden: int,
        activation: Activation,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.activation: Activation = activation
        outer, inner = {"embed": features}, {"mlp": hidden}
        self.up = up(inputs=outer, outputs=inner, rngs=rngs)
        self.down = down(inputs=inner, outputs=outer, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        up_BTF = checkpoint_name(self.up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = activate(self.activation, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(self.down(hidden_BTF, context.at("down")), "mlp_down")
