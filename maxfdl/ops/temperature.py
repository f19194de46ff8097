"""Scaling of queries by position."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class LogTemperature:
    """Multiplies the query at position p by `1 + scale ln(1 + floor((p + 1) / floor))`.

    Keeps attention sharp in long documents where keys carry no position (Nakanishi
    2025, https://arxiv.org/abs/2501.19399, in the form of Llama 4).

    Args:
      scale: How fast it grows.
      floor: Tokens per step of growth.
    """

    scale: float
    floor: int

    @staticmethod
    def check_config(node):
        if not 1 <= node.floor < 2**31:
            yield f"LogTemperature floor ({node.floor}) must be from 1 to {2**31 - 1}."

    def __call__(
        self, q_BTHK: Float[Array, "B T H K"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T H K"]:
        steps = jnp.floor((positions.astype(jnp.float32) + 1.0) / self.floor)
        factor = 1.0 + self.scale * jnp.log1p(steps)
        return (q_BTHK * factor[..., None, None]).astype(q_BTHK.dtype)
