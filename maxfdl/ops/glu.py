"""Gated linear units: how a gate and an up projection become one hidden vector."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.activation import Activation, activate


@dataclasses.dataclass(frozen=True)
class Glu:
    """`act(gate) * up`: with `silu` SwiGLU, with `gelu` GEGLU.

    Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """

    activation: Activation = "silu"

    def __call__(
        self, gate: Float[Array, "*N F"], up: Float[Array, "*N F"]
    ) -> Float[Array, "*N F"]:
        return activate(self.activation, gate) * up


@dataclasses.dataclass(frozen=True)
class ClampedSwiGlu:
    """`(up + 1) * gate * sigmoid(alpha * gate)` of clamped inputs.

    The gate is cut off above `limit` and `up` on both sides, which bounds what outliers
    can do. From the reference code of GPT-OSS, https://github.com/openai/gpt-oss.
    """

    alpha: float
    limit: float

    @staticmethod
    def check_config(node):
        if node.limit <= 0:
            yield f"ClampedSwiGlu limit ({node.limit}) must be positive."

    def __call__(
        self, gate: Float[Array, "*N F"], up: Float[Array, "*N F"]
    ) -> Float[Array, "*N F"]:
        gate = jnp.minimum(gate, self.limit)
        up = jnp.clip(up, -self.limit, self.limit)
        return (up + 1) * (gate * jax.nn.sigmoid(self.alpha * gate))
