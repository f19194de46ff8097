"""Rotary position embeddings.

Letters: B rows, T tokens, H heads, K width of a head.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotates pairs of features by an angle that grows with the position.

    Feature `i` of the first half and feature `i` of the second half form a pair,
    turned by `position * theta ** (-2 i / K)`: Su et al. 2021,
    https://arxiv.org/abs/2104.09864, in the half-split order of Hugging Face
    checkpoints. Angles are float32.

    Args:
      theta: Base of the wavelengths; the longest is about `2 pi theta` tokens.
    """

    theta: float = 10_000.0

    def __call__(
        self, x_BTHK: Float[Array, "B T H K"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T H K"]:
        width = x_BTHK.shape[-1]
        exponents = jnp.arange(0, width, 2, dtype=jnp.float32) / width
        inverse_wavelength = 1.0 / self.theta**exponents
        angles = positions[..., None].astype(jnp.float32) * inverse_wavelength
        cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
        first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        )
        return turned.astype(x_BTHK.dtype)
