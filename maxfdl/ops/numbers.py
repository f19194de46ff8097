"""Numbers of a few bits: which values codes stand for, and which code is nearest.

Works on NumPy and on JAX arrays.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import ml_dtypes
import numpy as np

Name = Literal["int8", "int4", "nf4", "e4m3", "e2m1"]


class Numbers:
    """Base. `most` is the greatest magnitude that a code stands for, `bits` those of a
    code and `dtype` the type that holds one."""

    most: float
    bits: int
    dtype: str

    def encode(self, x: Any) -> Any:
        """Returns the code of the nearest number. Beyond the greatest is that."""
        raise NotImplementedError

    def decode(self, codes: Any) -> Any:
        """Returns numbers in float32."""
        raise NotImplementedError

    def exactly(self, x: np.ndarray) -> np.ndarray | None:
        """Returns the codes of float32 numbers, or None if there are not such codes."""
        all_codes = np.arange(2**self.bits, dtype=np.uint8).view(self.dtype)
        bits = self.decode(all_codes).view(np.int32)  # which tell -0 from 0
        order = np.argsort(bits, kind="stable")
        place = np.searchsorted(bits[order], x.view(np.int32))
        found = order[np.minimum(place, len(order) - 1)]
        same = np.array_equal(bits[found], x.view(np.int32))
        return all_codes[found] if same else None


@dataclasses.dataclass(frozen=True)
class Integers(Numbers):
    """The integers from -most to most. Codes of 4 bits are those plus 8."""

    bits: int
    dtype: str

    @property
    def most(self) -> float:  # type: ignore[override]
        return 2.0 ** (self.bits - 1) - 1

    def encode(self, x):
        xp = _library(x)
        codes = xp.clip(xp.round(x), -self.most, self.most)
        return (codes + 8 if self.bits == 4 else codes).astype(self.dtype)

    def decode(self, codes):
        if self.bits == 4:
            codes = codes.astype("int32") - 8
        return codes.astype("float32")


@dataclasses.dataclass(frozen=True)
class Table(Numbers):
    """Numbers by their code of 4 bits. Of two that are equally near, the even code."""

    values: tuple[float, ...]
    bits: int = 4
    dtype: str = "uint8"

    @property
    def most(self) -> float:  # type: ignore[override]
        return max(map(abs, self.values))

    def encode(self, x):
        xp = _library(x)
        # Where a number has two codes, such as 0 and -0, the first.
        ascending = sorted(
            {v: c for c, v in reversed([*enumerate(self.values)])}.items()
        )
        place = xp.zeros(x.shape, xp.int32)
        for (low, code), (high, _) in itertools.pairwise(ascending):
            middle = np.float32((low + high) / 2)
            place = place + (x >= middle if code % 2 else x > middle)
        return _look_up([code for _, code in ascending], place, xp.uint8)

    def decode(self, codes):
        return _look_up(self.values, codes, np.float32)


@dataclasses.dataclass(frozen=True)
class Floats(Numbers):
    """The finite numbers of a floating-point type of JAX and ml_dtypes."""

    dtype: str
    bits: int = 8

    @property
    def most(self) -> float:  # type: ignore[override]
        return float(ml_dtypes.finfo(self.dtype).max)

    def encode(self, x):
        return _library(x).clip(x, -self.most, self.most).astype(self.dtype)

    def decode(self, codes):
        return codes.astype("float32")


def _look_up(values: Sequence[float | int], index: Any, dtype: Any) -> Any:
    """Returns the value at each index.

    XLA:CPU and TPU take numbers from a table one by one, but choose between two vectors
    at once: so a traced index chooses bit by bit.
    """
    if isinstance(index, np.ndarray):
        return np.asarray(values, dtype)[index]
    level = [jnp.asarray(value, dtype) for value in values]
    for bit in range((len(values) - 1).bit_length()):
        is_set = (index & (1 << bit)) != 0
        pairs = itertools.zip_longest(level[0::2], level[1::2])
        level = [a if b is None else jnp.where(is_set, b, a) for a, b in pairs]
    return level[0]


def _library(x: Any) -> Any:
    return np if isinstance(x, np.ndarray) else jnp


NUMBERS: dict[Name, Numbers] = {
    "int8": Integers(8, "int8"),
    "int4": Integers(4, "uint8"),
    # Quantiles of a normal distribution and 0. Dettmers et al. 2023, appendix E,
    # https://arxiv.org/abs/2305.14314.
    "nf4": Table(
        (
            -1.0,
            -0.6961928009986877,
            -0.5250730514526367,
            -0.39491748809814453,
            -0.28444138169288635,
            -0.18477343022823334,
            -0.09105003625154495,
            0.0,
            0.07958029955625534,
            0.16093020141124725,
            0.24611230194568634,
            0.33791524171829224,
            0.44070982933044434,
            0.5626170039176941,
            0.7229568362236023,
            1.0,
        )
    ),
    "e4m3": Floats("float8_e4m3fn"),
    # A bit of sign, two of the exponent, one of the mantissa.
    "e2m1": Table(
        tuple(
            sign * magnitude
            for sign in (1.0, -1.0)
            for magnitude in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
        )
    ),
}
