"""Position-wise feed-forward layers.

Letters: B rows, T tokens, D residual width, F hidden width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.context import Context
from maxfdl.layers.linen.linear import Linear
from maxfdl.layers.linen.module import Module
from maxfdl.markers import FromParent
from maxfdl.ops.activation import Activation, activate
from maxfdl.ops.glu import ClampedSwiGlu, Glu


class GatedMlp(Module, kw_only=True):
    """`down(glu(gate(x), up(x)))`: with `silu`, FFN_SwiGLU of Shazeer 2020,
    https://arxiv.org/abs/2002.05202.

    Holds `3 D F` weights and spends `6 D F` FLOPs per token.

    Args:
      hidden: F; no 2/3 factor and no rounding happens here.
      glu: How gate and value make a hidden feature.
    """

    named_tensors = ("mlp_gate", "mlp_up", "mlp_down")

    gate: Callable[..., Linear]
    up: Callable[..., Linear]
    down: Callable[..., Linear]
    hidden: int
    glu: Glu | ClampedSwiGlu
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        outer, inner = {"embed": self.features}, {"mlp": self.hidden}
        gate = self.gate(inputs=outer, outputs=inner, name="gate")
        up = self.up(inputs=outer, outputs=inner, name="up")
        down = self.down(inputs=inner, outputs=outer, name="down")

        gate_BTF = checkpoint_name(gate(x_BTD, context.at("gate")), "mlp_gate")
        up_BTF = checkpoint_name(up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = self.glu(gate_BTF, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(down(hidden_BTF, context.at("down")), "mlp_down")


class Mlp(Module, kw_only=True):
    """`down(act(up(x)))`: the feed-forward layer of Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762.

    Holds `2 D F` weights and spends `4 D F` FLOPs per token.

    Args:
      hidden: F.
      activation: Name of the function between the projections.
    """

    named_tensors = ("mlp_up", "mlp_down")

    up: Callable[..., Linear]
    down: Callable[..., Linear]
    hidden: int
    activation: Activation
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        outer, inner = {"embed": self.features}, {"mlp": self.hidden}
        up = self.up(inputs=outer, outputs=inner, name="up")
        down = self.down(inputs=inner, outputs=outer, name="down")

        up_BTF = checkpoint_name(up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = activate(self.activation, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(down(hidden_BTF, context.at("down")), "mlp_down")
