"""Linear attention layers, whose state does not grow.

Letters: B rows, T tokens, D residual width, G key heads, H value heads, K width of a
query and key, V width of a value.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_gated_delta_net
from maxfdl.layers.context import Context
from maxfdl.layers.linen.convolution import CausalConvolution
from maxfdl.layers.linen.linear import Linear
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.activation import activate
from maxfdl.ops.delta_rule import GatedDeltaRule, LogUniform, log_decay
from maxfdl.ops.gated_norm import gated_rms_norm
from maxfdl.ops.initializers import Constant


class GatedRMSNorm(Module, kw_only=True):
    """Root-mean-square norm, gated, with a scale: see `ops.gated_norm`."""

    epsilon: float = 1e-6
    features: Annotated[int, FromParent]

    def setup(self):
        self.scale = param(
            self,
            "scale",
            Parameter((self.features,), ("norm",), Constant(1.0), "scale"),
        )

    def __call__(self, x: jax.Array, gate: jax.Array, context: Context) -> jax.Array:
        scale = context.weight(self.scale, ("norm",), dtype=self.scale.dtype)
        return gated_rms_norm(x, gate, scale, self.epsilon)


class GatedDeltaNet(Module, kw_only=True):
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

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        embed, heads = {"embed": self.features}, {"heads": self.num_value_heads}
        keys = {"kv_heads": self.num_key_heads, "head_dim": self.key_dim}
        values = {**heads, "head_dim": self.value_dim}
        query = self.query(inputs=embed, outputs=keys, name="query")
        key = self.key(inputs=embed, outputs=keys, name="key")
        value = self.value(inputs=embed, outputs=values, name="value")
        query_conv = self.convolution(channels=keys, name="query_conv")
        key_conv = self.convolution(channels=keys, name="key_conv")
        value_conv = self.convolution(channels=values, name="value_conv")
        beta = self.beta(inputs=embed, outputs=heads, name="beta")
        decay = self.decay(inputs=embed, outputs=heads, name="decay")
        output_gate = self.output_gate(inputs=embed, outputs=values, name="output_gate")
        norm = self.norm(features=self.value_dim, name="norm")
        out = self.out(inputs=values, outputs=embed, name="out")
        shape = (self.num_value_heads,)
        a_log = Parameter(shape, ("heads",), LogUniform(), "scale")
        a_log = param(self, "a_log", a_log)
        dt_bias = Parameter(shape, ("heads",), Constant(1.0), "bias")
        dt_bias = param(self, "dt_bias", dt_bias)

        q_BTGK = query(x_BTD, context.at("query"))
        k_BTGK = key(x_BTD, context.at("key"))
        v_BTHV = value(x_BTD, context.at("value"))
        q_BTGK = activate("silu", query_conv(q_BTGK, context.at("query_conv")))
        k_BTGK = activate("silu", key_conv(k_BTGK, context.at("key_conv")))
        v_BTHV = activate("silu", value_conv(v_BTHV, context.at("value_conv")))
        beta_BTH = beta(x_BTD, context.at("beta")).astype(jnp.float32)
        log_decay_BTH = log_decay(
            decay(x_BTD, context.at("decay")),
            context.weight(a_log, ("heads",), dtype=jnp.float32),
            context.weight(dt_bias, ("heads",), dtype=jnp.float32),
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
        )
        if state_BHKV is not None:
            context.store(new_state_BHKV)
        mixed_BTHV = checkpoint_name(mixed_BTHV, "attention_out")
        gate_BTHV = output_gate(x_BTD, context.at("output_gate"))
        mixed_BTHV = norm(mixed_BTHV, gate_BTHV, context.at("norm"))
        y_BTD = out(mixed_BTHV, context.at("out"))
        return checkpoint_name(y_BTD, "attention_projected")
