"""Position-wise feed-forward layers.

Letters: B rows, T tokens, D residual width, F hidden width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.linear import Linear
from maxfdl.markers import FromParent
from maxfdl.ops.activation import Activation, activate
from maxfdl.ops.glu import ClampedSwiGlu, Glu


class GatedMlp(Layer):
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

    def make(self, maker: Maker):
        outer, inner = {"embed": self.features}, {"mlp": self.hidden}
        maker.child("gate", self.gate, inputs=outer, outputs=inner)
        maker.child("up", self.up, inputs=outer, outputs=inner)
        maker.child("down", self.down, inputs=inner, outputs=outer)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        gate_BTF = checkpoint_name(parts.gate(x_BTD, context.at("gate")), "mlp_gate")
        up_BTF = checkpoint_name(parts.up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = self.glu(gate_BTF, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(parts.down(hidden_BTF, context.at("down")), "mlp_down")


class Mlp(Layer):
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

    def make(self, maker: Maker):
        outer, inner = {"embed": self.features}, {"mlp": self.hidden}
        maker.child("up", self.up, inputs=outer, outputs=inner)
        maker.child("down", self.down, inputs=inner, outputs=outer)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        up_BTF = checkpoint_name(parts.up(x_BTD, context.at("up")), "mlp_up")
        hidden_BTF = activate(self.activation, up_BTF)
        hidden_BTF = context.constrain(hidden_BTF, "batch", "sequence", "mlp")
        return checkpoint_name(parts.down(hidden_BTF, context.at("down")), "mlp_down")
