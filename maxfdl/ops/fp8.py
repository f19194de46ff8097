"""FP8 numbers and their scales.

A tensor `x` in FP8 is a scale and `round(x / scale)`, whose greatest magnitude is that
of the format: `scale = amax / max`, where `amax = max |x|`. Micikevicius et al. 2022,
https://arxiv.org/abs/2209.05433.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Format = Literal["e4m3", "e5m2"]

_DTYPES: dict[tuple[Format, bool], Any] = {
    ("e4m3", False): jnp.float8_e4m3fn,
    ("e5m2", False): jnp.float8_e5m2,
    ("e4m3", True): jnp.float8_e4m3fnuz,
    ("e5m2", True): jnp.float8_e5m2fnuz,
}

# Magnitudes whose scales, and the inverses of these, float32 holds in every format.
_LEAST, _MOST = 2.0**-100, 2.0**100


@dataclasses.dataclass(frozen=True)
class Formats:
    """Which FP8 formats a product has.

    Args:
      forward: Of activations and kernels. e4m3 has 3 bits of mantissa and numbers up to
        448, e5m2 has 2 bits and numbers up to 57344. NVIDIA GPUs do not multiply e5m2
        by e5m2: XLA then computes in 16 bits.
      backward: Of gradients.
      fnuz: Whether they are the formats of AMD's MI300, which have no negative zero:
        their e4m3 ends at 240. Otherwise they are those of the OCP standard, which
        NVIDIA GPUs and TPUs have.
    """

    forward: Format = "e4m3"
    backward: Format = "e5m2"
    fnuz: bool = False

    @property
    def forward_dtype(self) -> Any:
        return _DTYPES[self.forward, self.fnuz]

    @property
    def backward_dtype(self) -> Any:
        return _DTYPES[self.backward, self.fnuz]


def scale_of(
    amax: Float[Array, "..."], dtype: Any, margin: int = 0
) -> Float[Array, "..."]:
    """Returns `2**margin amax / max`, by which a tensor is divided; 1 if `amax` is 0.

    It is finite and not 0, whatever `amax` is. The rounding is that of Flax's
    `compute_scale`, which inverts the inverse.

    Args:
      amax: Greatest finite magnitudes.
      dtype: An FP8 type.
      margin: Powers of two left free for numbers above `amax`.
    """
    most = jnp.finfo(dtype).max.astype(jnp.float32)
    inverse = (most / jnp.clip(amax, _LEAST, _MOST)) / 2**margin
    return 1.0 / jnp.where(amax > 0, inverse, 1.0)


def quantise(
    x: Float[Array, "..."], scale: Float[Array, "..."], dtype: Any
) -> Float[Array, "..."]:
    """Returns `x / scale` in FP8. What is beyond the greatest number becomes that.

    Infinities become NaN, as NaN stays NaN, so that a step that overflowed is seen.
    """
    most = jnp.finfo(dtype).max.astype(jnp.float32)
    inside = jnp.clip(x.astype(jnp.float32) / scale, -most, most)
    return jnp.where(jnp.isinf(x), jnp.nan, inside).astype(dtype)


def rolled(history: Float[Array, "... N"], amax: jax.Array) -> Float[Array, "... N"]:
    """Returns the history with the newest magnitude first, and without the oldest.

    The order is that of Flax and Transformer Engine: the newest is at 0, those before
    it follow from the end backwards.
    """
    return jnp.roll(history, -1, axis=-1).at[..., 0].set(amax)
