"""Mixture of experts: a router, experts, and a layer of both.

Letters: B rows, T tokens, D residual width, E experts, k of them chosen per token, F
hidden width of an expert, N tokens of all rows, M rows that experts see.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_moe
from maxfdl.layers.context import Context
from maxfdl.layers.dispatched import OnMesh, dispatched
from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.linear import Linear
from maxfdl.layers.mlp import GatedMlp
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.product import make_kernel, multiply
from maxfdl.layers.sinks import Counts, Mean, RouterLoad
from maxfdl.markers import FromParent
from maxfdl.ops import balance
from maxfdl.ops.codec import Codec, Simulated
from maxfdl.ops.experts import Dispatch, Groups
from maxfdl.ops.glu import ClampedSwiGlu, Glu
from maxfdl.ops.grouped_dot import GroupedProduct
from maxfdl.ops.initializers import Constant, Initializer
from maxfdl.ops.routing import Choice, TopK, router_logits
from maxfdl.ops.state import StateDeclaration


class Router(Layer):
    """Chooses experts for each token by a linear map of it, in float32.

    Holds `D E` weights. Leaves the sink `load`, a `RouterLoad` of the tokens that are
    no padding; `ops.balance` has its formulas.

    Args:
      routing: From logits to experts and weights.
      initializer: How the kernel is drawn.
      use_bias: Whether logits have a bias, a parameter that starts at 0.
      use_selection_bias: Whether scores have one that decides the choice alone. It is
        state, `selection_bias`, and starts at 0.
      count_padding: Whether `load` is that of padding, too, as in MaxText.
      num_experts: E.
    """

    named_tensors = ("router_logits",)

    routing: TopK
    initializer: Initializer
    use_bias: bool = False
    use_selection_bias: bool = False
    count_padding: bool = False
    num_experts: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        embed, experts = {"embed": self.features}, {"experts": self.num_experts}
        kernel = Parameter.of_dims(
            embed, experts, init=self.initializer, role="kernel", contracted=1
        )
        bias = Parameter.of_dims(experts, init=Constant(), role="bias")
        maker.parameter("kernel", kernel)
        maker.parameter("bias", bias if self.use_bias else None)
        selection_bias = StateDeclaration((self.num_experts,), ("experts",))
        maker.state(
            "selection_bias", selection_bias if self.use_selection_bias else None
        )

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> Choice:
        kernel = parts.kernel.ready(context, jnp.float32)
        bias = selection_bias = None
        if parts.bias is not None:
            bias = parts.bias.ready(context, jnp.float32)
        if parts.selection_bias is not None:
            selection_bias = parts.selection_bias.read()
        logits_BTE = router_logits(x_BTD, kernel, bias)
        logits_BTE = checkpoint_name(logits_BTE, "router_logits")
        choice = self.routing(logits_BTE, selection_bias)
        mask_BT = balance.counted(context.places)
        if self.count_padding:
            mask_BT = jnp.ones_like(mask_BT)
        tokens = jnp.sum(mask_BT, dtype=jnp.float32)
        counts = balance.expert_counts(choice.experts, mask_BT, self.num_experts)
        shares = balance.probability_sums(choice.scores, mask_BT)
        z = balance.router_z(logits_BTE, mask_BT)
        uneven_B = balance.sequence_balance(choice.scores, self.routing.k, mask_BT)
        rows = jnp.sum(jnp.any(mask_BT, axis=1), dtype=jnp.float32)
        load = RouterLoad(
            counts=Counts(counts),
            probability=Mean(shares, tokens),
            z=Mean(z, tokens),
            sequence_balance=Mean(jnp.sum(uneven_B), rows),
        )
        context.emit("load", load)
        return choice


class GroupedLinear(Layer):
    """A linear map of its own for each expert: `y = x kernel[e] + bias[e]`.

    Holds `E prod(I O)` weights, for I inputs and O outputs.

    Args:
      dot: The product of groups of rows with their kernels.
      initializer: How the kernels are drawn.
      storage: How they are stored in a few bits, and not trained, or for what storage
        they are trained; None: as one array of numbers.
      use_bias: Whether to add biases, which start at 0.
      num_experts: E.
      inputs: Name and size of the contracted dim.
      outputs: Name and size of the dim of the result.
    """

    dot: GroupedProduct
    initializer: Initializer
    storage: Codec | Simulated | None = None
    use_bias: bool = False
    num_experts: Annotated[int, FromParent]
    inputs: Annotated[dict[str, int], FromParent]
    outputs: Annotated[dict[str, int], FromParent]

    def make(self, maker: Maker):
        experts = {"experts": self.num_experts}
        kernel = Parameter.of_dims(
            experts,
            self.inputs,
            self.outputs,
            init=self.initializer,
            role="kernel",
            contracted=1,
            batched=1,
        )
        bias = Parameter.of_dims(
            experts, self.outputs, init=Constant(), role="bias", batched=1
        )
        make_kernel(maker, self.dot, kernel, self.storage)
        maker.parameter("bias", bias if self.use_bias else None)

    @with_parts
    def __call__(
        self, parts, x: jax.Array, groups: Groups | OnMesh, context: Context
    ) -> jax.Array:
        sizes, expected = groups.sizes, groups.expected
        y = multiply(self.dot, parts, x, context, sizes, expected=expected)
        if parts.bias is not None:
            bias = parts.bias.ready(context, x.dtype)
            y = y + groups.of_experts(bias, parts.bias.declared.axes)
        return y


class Experts(Layer):
    """A gated feed-forward layer per expert: `down(glu(gate(x), up(x)))`.

    Holds `3 E D F` weights, without biases, and spends `6 k D F` FLOPs per token.
    Leaves the sink `dropped`, how many copies of tokens no expert saw.

    Args:
      gate, up, down: The projections of all experts.
      hidden: F.
      glu: How gate and up make a hidden feature.
      dispatch: How tokens get to experts.
      weighted: Whether a token's weight scales what the expert gives or what it gets.
      num_experts: E.
    """

    named_tensors = ("expert_gate", "expert_up", "expert_down")

    gate: Callable[..., GroupedLinear]
    up: Callable[..., GroupedLinear]
    down: Callable[..., GroupedLinear]
    hidden: int
    glu: Glu | ClampedSwiGlu
    dispatch: Dispatch
    weighted: Literal["output", "input"] = "output"
    num_experts: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        outer, inner = {"embed": self.features}, {"expert_mlp": self.hidden}
        sizes = dict(num_experts=self.num_experts)
        maker.child("gate", self.gate, inputs=outer, outputs=inner, **sizes)
        maker.child("up", self.up, inputs=outer, outputs=inner, **sizes)
        maker.child("down", self.down, inputs=inner, outputs=outer, **sizes)

    @with_parts
    def __call__(
        self, parts, x_BTD: jax.Array, choice: Choice, context: Context
    ) -> jax.Array:
        groups = dispatched(self.dispatch, choice.experts, self.num_experts, context)
        before, after = choice.weights, None
        if self.weighted == "output":
            before, after = after, before
        x_MD = groups.gather(x_BTD, before)
        gate_MF = parts.gate(x_MD, groups, context.at("gate"))
        up_MF = parts.up(x_MD, groups, context.at("up"))
        gate_MF = checkpoint_name(gate_MF, "expert_gate")
        up_MF = checkpoint_name(up_MF, "expert_up")
        y_MD = parts.down(self.glu(gate_MF, up_MF), groups, context.at("down"))
        y_MD = checkpoint_name(y_MD, "expert_down")
        dropped = groups.dropped(balance.counted(context.places))
        context.emit("dropped", Counts(dropped))
        y_BTD = groups.combine(y_MD, after)
        return context.constrain(y_BTD, "batch", "sequence", "embed")


class MoE(Layer):
    """`sum_j w_j expert_j(x) + shared(x)` over the k experts chosen for each token.

    Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; with shared experts
    DeepSeekMoE, https://arxiv.org/abs/2401.06066.

    Args:
      router, experts: The two parts.
      shared: A layer for all tokens beside the experts; None: there is none.
      shared_gate: Map to one number per token, whose sigmoid scales what `shared`
        gives; None: it counts in full.
      num_experts: E, handed down to router and experts.
    """

    check_config = staticmethod(check_moe)

    router: Callable[..., Router]
    experts: Callable[..., Experts]
    shared: Callable[..., GatedMlp] | None = None
    shared_gate: Callable[..., Linear] | None = None
    num_experts: int
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        sizes = dict(num_experts=self.num_experts, features=self.features)
        embed = {"embed": self.features}
        maker.child("router", self.router, **sizes)
        maker.child("experts", self.experts, **sizes)
        maker.child("shared", self.shared, features=self.features)
        maker.child("shared_gate", self.shared_gate, inputs=embed, outputs={})

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        choice = parts.router(x_BTD, context.at("router"))
        y_BTD = parts.experts(x_BTD, choice, context.at("experts"))
        if parts.shared is None:
            return y_BTD
        shared_BTD = parts.shared(x_BTD, context.at("shared"))
        if parts.shared_gate is not None:
            gate_BT = parts.shared_gate(x_BTD, context.at("shared_gate"))
            shared_BTD = jax.nn.sigmoid(gate_BT)[..., None] * shared_BTD
        return y_BTD + shared_BTD
