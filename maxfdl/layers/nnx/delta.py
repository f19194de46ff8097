"""Linear attention layers, whose state does not grow.

Letters: B rows, T tokens, D residual width, G key heads, H value heads, K width of a
query and key, V width of a value.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from maxfdl.layers.checks import check_gated_delta_net
from maxfdl.layers.context import Context
from maxfdl.layers.nnx.convolution import CausalConvolution
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.activation import activate
from maxfdl.ops.delta_rule import GatedDeltaRule, LogUniform, log_decay
from maxfdl.ops.gated_norm import gated_rms_norm
from maxfdl.ops.initializers import Constant


class GatedRMSNorm(Module):
    """Root-mean-square norm, gated, with a scale: see `ops.gated_norm`."""

    def __init__(
        self,
        *,
        epsilon: float = 1e-6,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon
        self.scale = param(
            Parameter((features,), ("norm",), Constant(1.0), "scale"), rngs
        )

    def __call__(self, x: jax.Array, gate: jax.Array, context: Context) -> jax.Array:
        scale = context.weight(self.scale[...], ("norm",), dtype=self.scale[...].dtype)
        return gated_rms_norm(x, gate, scale, self.epsilon)


class GatedDeltaNet(Module):
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

    def __init__(
        self,
        *,
        query: Callable[..., Linear],
        key: Callable[..., Linear],
        value: Callable[..., Linear],
        convolution: Callable[..., CausalConvolution],
        beta: Callable[..., Linear],
        decay: Callable[..., Linear],
        delta_rule: GatedDeltaRule,
        output_gate: Callable[..., Linear],
        norm: Callable[..., GatedRMSNorm],
        out: Callable[..., Linear],
        num_key_heads: int,
        num_value_heads: int,
        key_dim: int,
        value_dim: int,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.delta_rule = delta_rule
        embed, heads = {"embed": features}, {"heads": num_value_heads}
        keys = {"kv_heads": num_key_heads, "head_dim": key_dim}
        values = {**heads, "head_dim": value_dim}
        self.query = query(inputs=embed, outputs=keys, rngs=rngs)
        self.key = key(inputs=embed, outputs=keys, rngs=rngs)
        self.value = value(inputs=embed, outputs=values, rngs=rngs)
        self.query_conv = convolution(channels=keys, rngs=rngs)
        self.key_conv = convolution(channels=keys, rngs=rngs)
        self.value_conv = convolution(channels=values, rngs=rngs)
        self.beta = beta(inputs=embed, outputs=heads, rngs=rngs)
        self.decay = decay(inputs=embed, outputs=heads, rngs=rngs)
        self.output_gate = output_gate(inputs=embed, outputs=values, rngs=rngs)
        self.norm = norm(features=value_dim, rngs=rngs)
        self.out = out(inputs=values, outputs=embed, rngs=rngs)
        shape = (num_value_heads,)
        self.a_log = param(Parameter(shape, ("heads",), LogUniform(), "scale"), rngs)
        self.dt_bias = param(Parameter(shape, ("heads",), Constant(1.0), "bias"), rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        q_BTGK = self.query(x_BTD, context.at("query"))
        k_BTGK = self.key(x_BTD, context.at("key"))
        v_BTHV = self.value(x_BTD, context.at("value"))
        q_BTGK = activate("silu", self.query_conv(q_BTGK, context.at("query_conv")))
        k_BTGK = activate("silu", self.key_conv(k_BTGK, context.at("key_conv")))
        v_BTHV = activate("silu", self.value_conv(v_BTHV, context.at("value_conv")))
        beta_BTH = self.beta(x_BTD, context.at("beta")).astype(jnp.float32)
        log_decay_BTH = log_decay(
            self.decay(x_BTD, context.at("decay")),
            context.weight(self.a_log[...], ("heads",), dtype=jnp.float32),
            context.weight(self.dt_bias[...], ("heads",), dtype=jnp.float32),
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
        gate_BTHV = self.output_gate(x_BTD, context.at("output_gate"))
        mixed_BTHV = self.norm(mixed_BTHV, gate_BTHV, context.at("norm"))
        y_BTD = self.out(mixed_BTHV, context.at("out"))
        return checkpoint_name(y_BTD, "attention_projected")
