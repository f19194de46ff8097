"""Linear attention layers, whose state does not grow.

Letters: B rows, T tokens, D residual width, G key heads, H value heads, K width of a
query and key, V width of a value.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_gated_delta_net
from maxfdl.layers.context import Context
from maxfdl.layers.convolution import CausalConvolution
from maxfdl.layers.layer import Layer, Maker, with_parts
from maxfdl.layers.linear import Linear
from maxfdl.layers.norm import norm_scale
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.activation import activate
from maxfdl.ops.delta_rule import GatedDeltaRule, LogUniform, log_decay
from maxfdl.ops.gated_norm import gated_rms_norm
from maxfdl.ops.initializers import Constant


class GatedRMSNorm(Layer):
    """Root-mean-square norm, gated, with a scale: see `ops.gated_norm`."""

    epsilon: float = 1e-6
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.parameter("scale", norm_scale(self.features, 1.0))

    @with_parts
    def __call__(
        self, parts, x: jax.Array, gate: jax.Array, context: Context
    ) -> jax.Array:
        return gated_rms_norm(x, gate, parts.scale.ready(context), self.epsilon)


class GatedDeltaNet(Layer):
    """Linear attention by the gated delta rule, behind short convolutions.

    Queries, keys and values pass a causal convolution and `silu`. What a head reads of
    its memory is normed, and gated by a projection of `x`. Yang et al. 2024,
    https://arxiv.org/abs/2412.06464. Its cache is the state [B, H, K, V] in float32,
    beside those of the convolutions.

    Holds `D (2 G K + 3 H V + 2 H) + 2 H` weights and those of convolutions and norm.

    Args:
      query, key, value: Projections to [G, K], [G, K] and [H, V].
      convolution: What each of these three passes.
      beta: Projection to [H], whose sigmoid is how far a memory is corrected.
      decay: Projection to [H], from which follows how much of a memory is kept.
      delta_rule: How memories are written and read.
      output_gate: Projection to [H, V].
      norm: Norm over V.
      out: Projection from [H, V].
      num_key_heads: G, a divisor of H.
      num_value_heads: H.
      key_dim: K.
      value_dim: V.
    """

    named_tensors = ("query", "key", "value", "attention_out", "attention_projected")
    check_config = staticmethod(check_gated_delta_net)

    query: Callable[..., Linear]
    key: Callable[..., Linear]
    value: Callable[..., Linear]
    convolution: Callable[..., CausalConvolution]
    beta: Callable[..., Linear]
    decay: Callable[..., Linear]
    delta_rule: GatedDeltaRule
    output_gate: Callable[..., Linear]
    norm: Callable[..., GatedRMSNorm]
    out: Callable[..., Linear]
    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        embed, heads = {"embed": self.features}, {"heads": self.num_value_heads}
        keys = {"kv_heads": self.num_key_heads, "head_dim": self.key_dim}
        values = {**heads, "head_dim": self.value_dim}
        maker.child("query", self.query, inputs=embed, outputs=keys)
        maker.child("key", self.key, inputs=embed, outputs=keys)
        maker.child("value", self.value, inputs=embed, outputs=values)
        maker.child("query_conv", self.convolution, channels=keys)
        maker.child("key_conv", self.convolution, channels=keys)
        maker.child("value_conv", self.convolution, channels=values)
        maker.child("beta", self.beta, inputs=embed, outputs=heads)
        maker.child("decay", self.decay, inputs=embed, outputs=heads)
        maker.child("output_gate", self.output_gate, inputs=embed, outputs=values)
        maker.child("norm", self.norm, features=self.value_dim)
        maker.child("out", self.out, inputs=values, outputs=embed)
        maker.parameter(
            "a_log", Parameter.of_dims(heads, init=LogUniform(), role="scale")
        )
        maker.parameter(
            "dt_bias", Parameter.of_dims(heads, init=Constant(1.0), role="bias")
        )

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        q_BTGK = parts.query(x_BTD, context.at("query"))
        k_BTGK = parts.key(x_BTD, context.at("key"))
        v_BTHV = parts.value(x_BTD, context.at("value"))
        q_BTGK = activate("silu", parts.query_conv(q_BTGK, context.at("query_conv")))
        k_BTGK = activate("silu", parts.key_conv(k_BTGK, context.at("key_conv")))
        v_BTHV = activate("silu", parts.value_conv(v_BTHV, context.at("value_conv")))
        beta_BTH = parts.beta(x_BTD, context.at("beta")).astype(jnp.float32)
        log_decay_BTH = log_decay(
            parts.decay(x_BTD, context.at("decay")),
            parts.a_log.ready(context, jnp.float32),
            parts.dt_bias.ready(context, jnp.float32),
        )
        state_BHKV = context.cached(
            lambda length: self.delta_rule.empty(k_BTGK, v_BTHV)
        )
        mixed_BTHV, new_state_BHKV = self.delta_rule(
            checkpoint_name(q_BTGK, "query"),
            checkpoint_name(k_BTGK, "key"),
            checkpoint_name(v_BTHV, "value"),
            log_decay_BTH,
            jax.nn.sigmoid(beta_BTH),
            context.places,
            state_BHKV,
            sharding=context.sharding,
        )
        if state_BHKV is not None:
            context.store(new_state_BHKV)
        mixed_BTHV = checkpoint_name(mixed_BTHV, "attention_out")
        gate_BTHV = parts.output_gate(x_BTD, context.at("output_gate"))
        mixed_BTHV = parts.norm(mixed_BTHV, gate_BTHV, context.at("norm"))
        y_BTD = parts.out(mixed_BTHV, context.at("out"))
        return checkpoint_name(y_BTD, "attention_projected")
