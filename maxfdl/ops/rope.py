"""Rotary position embeddings and the ways to stretch them to longer documents.

Letters: B rows, T tokens, H heads, K width of a head, R width that turns, P = R / 2.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from maxfdl.ops.mask import NOWHERE, Places

Layout = Literal["halves", "pairs"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotates pairs of features by an angle that grows with the position.

    Pair `i` turns by `position * theta ** (-2 i / R)`: Su et al. 2021,
    https://arxiv.org/abs/2104.09864. Angles are float32.

    Args:
      theta: Base of the wavelengths; the longest is about `2 pi theta` tokens.
      fraction: Part of a head's features that turns, the first `R = fraction K`.
      layout: Which features are a pair: `halves` those R / 2 apart, as in Hugging
        Face's Llama; `pairs` neighbours, as in the paper.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    layout: Layout = "halves"

    @staticmethod
    def check_config(node):
        yield from _check_rope(node)

    @property
    def stale_after(self) -> int | None:
        """Length past which a document's cached keys no longer hold; None: they do."""
        return None

    def frequencies(self, turning: int) -> np.ndarray:
        """Returns the [P] radians per token by which `turning` features turn."""
        exponents = np.arange(0, turning, 2, dtype=np.float32) / np.float32(turning)
        wavelengths = (self.theta ** exponents.astype(np.float64)).astype(np.float32)
        return np.float32(1.0) / wavelengths

    def magnitude(self) -> float:
        """Returns the factor of turned queries and keys."""
        return 1.0

    def angles(self, places: Places, turning: int) -> Float[Array, "B T P"]:
        """Returns by how much each pair of each token turns, in radians."""
        positions = places.positions[..., None].astype(jnp.float32)
        return positions * self.frequencies(turning)

    def __call__(
        self, x_BTHK: Float[Array, "B T H K"], places: Places
    ) -> Float[Array, "B T H K"]:
        turning = int(x_BTHK.shape[-1] * self.fraction)
        angles = self.angles(places, turning)
        cos_BTP = jnp.cos(angles) * self.magnitude()
        sin_BTP = jnp.sin(angles) * self.magnitude()
        turn = _TURN[self.layout]
        turned = turn(x_BTHK[..., :turning], cos_BTP[:, :, None], sin_BTP[:, :, None])
        if turning == x_BTHK.shape[-1]:
            return turned
        return jnp.concatenate([turned, x_BTHK[..., turning:]], axis=-1)


def _check_rope(node):
    if not 0 < node.fraction <= 1:
        yield f"Rope fraction ({node.fraction}) must be above 0 and at most 1."
    if node.theta <= 0:
        yield f"Rope theta ({node.theta}) must be positive."


def _check_stretched(node, *bounds: str):
    """Rules of a rotation that is slowed by `factor` within bounds of its own."""
    yield from _check_rope(node)
    for field in ("factor", *bounds):
        if getattr(node, field) <= 0:
            yield f"Rope {field} ({getattr(node, field)}) must be positive."
    if bounds:
        yield from _check_length(node)


def _check_length(node):
    if not 1 <= node.original_length < NOWHERE:
        yield (
            f"Rope original_length ({node.original_length}) must be from 1 to"
            f" {NOWHERE - 1}."
        )


def _turn_halves(x, cos, sin):
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _turn_pairs(x, cos, sin):
    first, second = x[..., ::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.reshape(x.shape).astype(x.dtype)


_TURN = {"halves": _turn_halves, "pairs": _turn_pairs}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Positions count `1 / factor`: Chen et al. 2023, arXiv:2306.15595."""

    factor: float

    @staticmethod
    def check_config(node):
        yield from _check_stretched(node)

    def frequencies(self, turning: int) -> np.ndarray:
        return super().frequencies(turning) / np.float32(self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Slows the long wavelengths by `factor`, keeps the short, blends between.

    As Llama 3.1's reference code: a wavelength above `original_length / low` is slow,
    one below `original_length / high` is kept.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    original_length: int

    @staticmethod
    def check_config(node):
        yield from _check_stretched(node, "low", "high")

    def frequencies(self, turning: int) -> np.ndarray:
        plain = super().frequencies(turning)
        turns = self.original_length / (2 * math.pi / plain)
        span = max(self.high - self.low, 1e-9)  # the blend may be a step
        blend = np.clip((turns - self.low) / span, 0.0, 1.0)
        return ((1 - blend) * plain / self.factor + blend * plain).astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN: slows by `factor` what turns less than `beta_slow` times in training.

    Keeps what turns more than `beta_fast` times and blends linearly in the index of
    the pair: Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.2.

    Args:
      factor: Ratio of the new length to the original.
      original_length: Tokens of a document in training.
      beta_fast, beta_slow: Bounds of the blend, in turns.
      truncate: Whether the bounds are rounded to whole pairs, as the paper's code does.
      attention_factor: What `magnitude` returns.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float

    @staticmethod
    def check_config(node):
        yield from _check_stretched(node, "beta_fast", "beta_slow")
        if node.theta <= 1:
            yield f"YarnRope theta ({node.theta}) must be above 1."

    def magnitude(self) -> float:
        return self.attention_factor

    def frequencies(self, turning: int) -> np.ndarray:
        plain = super().frequencies(turning)
        low, high = (
            self._index(self.beta_fast, turning),
            self._index(self.beta_slow, turning),
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, turning - 1)
        high = high + 0.001 if low == high else high  # the blend may be a step
        index = np.arange(turning // 2, dtype=np.float32)
        slowed = np.clip((index - low) / (high - low), 0.0, 1.0)
        return (plain / self.factor * slowed + plain * (1 - slowed)).astype(np.float32)

    def _index(self, turns: float, turning: int) -> float:
        """Returns the (fractional) pair that turns so often in `original_length`."""
        wavelength = self.original_length / (turns * 2 * math.pi)
        return turning * math.log(wavelength) / (2 * math.log(self.theta))


def yarn_magnitude(factor: float, coefficient: float = 1.0) -> float:
    """Returns `0.1 coefficient ln(factor) + 1`, YaRN's growth of the logits' root."""
    return 1.0 if factor <= 1 else 0.1 * coefficient * math.log(factor) + 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """LongRoPE: each pair is slowed by a factor of its own.

    Short factors for documents up to `original_length` tokens, long ones for all the
    tokens of a longer one: Ding et al. 2024, https://arxiv.org/abs/2402.13753. A
    document that grows past that length must be computed anew: its cache is stale.

    Args:
      short_factors, long_factors: [P] each.
      original_length: Tokens of a document in training.
      attention_factor: What `magnitude` returns.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_length: int
    attention_factor: float

    @staticmethod
    def check_config(node):
        yield from _check_rope(node)
        yield from _check_length(node)
        if min((*node.short_factors, *node.long_factors), default=1) <= 0:
            yield "LongRope short_factors and long_factors must be positive."
        if len(node.short_factors) != len(node.long_factors):
            yield (
                f"LongRope has {len(node.short_factors)} short_factors and"
                f" {len(node.long_factors)} long_factors; there must be as many."
            )

    @property
    def stale_after(self) -> int:
        return self.original_length

    def magnitude(self) -> float:
        return self.attention_factor

    def angles(self, places: Places, turning: int) -> Float[Array, "B T P"]:
        factors = jnp.where(
            places.document_lengths()[..., None] <= self.original_length,
            jnp.asarray(self.short_factors, jnp.float32),
            jnp.asarray(self.long_factors, jnp.float32),
        )
        positions = places.positions[..., None].astype(jnp.float32)
        return positions * (self.frequencies(turning) / factors)
