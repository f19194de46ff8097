"""Codes: one number of 8 bits or less per weight, and the tensors that hold them.

Here a code is held in float32, which every such number fits. Shapes of weights are
[..., rows, columns], where a row is what one output of a product sums.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import ml_dtypes
import numpy as np

from maxfdl.ops.numbers import NUMBERS, Integers, Numbers

Shape = tuple[int, ...]

_PIECE = 2**18  # numbers that are packed or unpacked at a time


class Codes(abc.ABC):
    """Base: codes of a weight, packed in one tensor, and back.

    Attributes:
      dtype: Type of the tensor.
      part: What its name adds to that of the weight.
    """

    dtype: ClassVar[np.dtype]
    part: str = ""

    @property
    @abc.abstractmethod
    def numbers(self) -> Numbers:
        """What codes can be."""

    @property
    def most(self) -> float:
        """Greatest magnitude of a code."""
        return self.numbers.most

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Returns the code nearest to each number; those too large become `most`."""
        return self.numbers.decode(self.numbers.encode(x))

    def holds(self, x: np.ndarray) -> bool:
        """Says whether all numbers are codes."""
        return np.array_equal(self.nearest(x), x)

    def packed_shape(self, shape: Shape) -> Shape:
        """Returns the shape of the tensor that holds a weight of this shape."""
        return shape

    def shape(self, packed: Shape) -> Shape | None:
        """Returns the shape of the weight in a tensor, or None if it does not tell."""
        return packed

    def pack(self, codes: np.ndarray) -> np.ndarray:
        return codes.astype(self.dtype)

    def unpack(self, packed: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns a new float32 array of the codes of a weight of this shape."""
        return packed.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Float8(Codes):
    """float8_e4m3fn, a byte each."""

    dtype = np.dtype(ml_dtypes.float8_e4m3fn)

    @property
    def numbers(self):
        return NUMBERS["e4m3"]


@dataclasses.dataclass(frozen=True)
class Int8(Codes):
    """Whole numbers of `bits` bits, from `-most` to `most`, a byte each.

    The lowest number of two's complement is a code, but never the nearest.
    """

    bits: int = 8
    dtype = np.dtype(np.int8)

    @property
    def numbers(self):
        return Integers(self.bits, "uint8" if self.bits == 4 else "int8")

    def holds(self, x):
        inside = np.clip(np.rint(x), -self.most - 1, self.most)
        return np.array_equal(inside, x)


@dataclasses.dataclass(frozen=True)
class PackedInt(Int8):
    """Whole numbers of `bits` bits in a stream of bits, cut into int32.

    A row begins a new int32. Each code comes with `2**(bits - 1)` added, so that it is
    not negative, and its lowest bit first. This is `pack-quantized` in
    compressed-tensors.
    """

    bits: int = 4
    part: str = "_packed"
    dtype = np.dtype("<i4")

    def packed_shape(self, shape):
        return (*shape[:-1], -(-shape[-1] * self.bits // 32))

    def shape(self, packed):
        return None  # the last int32 of a row may hold fewer codes than fit

    def pack(self, codes):
        return _by_rows(self._pack, codes, self.packed_shape(codes.shape), self.dtype)

    def unpack(self, packed, shape):
        def unpack(rows):
            return self._unpack(rows, shape[-1])

        return _by_rows(unpack, packed, shape, np.dtype(np.float32))

    def _pack(self, codes):
        unsigned = (codes + 2 ** (self.bits - 1)).astype(np.uint8)
        bits = np.unpackbits(unsigned[..., None], axis=-1, bitorder="little")
        stream = bits[..., : self.bits].reshape(len(codes), -1)
        stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
        return np.packbits(stream, axis=-1, bitorder="little").view(self.dtype)

    def _unpack(self, packed, columns):
        as_bytes = np.ascontiguousarray(packed, self.dtype).view(np.uint8)
        stream = np.unpackbits(as_bytes, axis=-1, bitorder="little")
        bits = stream[:, : columns * self.bits].reshape(len(packed), columns, self.bits)
        unsigned = np.packbits(bits, axis=-1, bitorder="little")[..., 0]
        return unsigned.astype(np.float32) - 2 ** (self.bits - 1)


@dataclasses.dataclass(frozen=True)
class Float4(Codes):
    """float4_e2m1fn, two in a byte, the first in its low half.

    Args:
      part: What the name adds.
      group: Columns that lie in a dim of their own, as in gpt-oss; None: no such dim.
    """

    part: str = "_packed"
    group: int | None = None
    dtype = np.dtype(np.uint8)

    @property
    def numbers(self):
        return NUMBERS["e2m1"]

    def nearest(self, x):
        # Keeps the sign of what becomes 0, as files of other tools do.
        return x.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)

    def packed_shape(self, shape):
        if self.group is None:
            return (*shape[:-1], shape[-1] // 2)
        return (*shape[:-1], shape[-1] // self.group, self.group // 2)

    def shape(self, packed):
        if self.group is None:
            return (*packed[:-1], packed[-1] * 2)
        return (*packed[:-2], packed[-2] * packed[-1] * 2)

    def pack(self, codes):
        nibbles = codes.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        packed = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
        return packed.reshape(self.packed_shape(codes.shape))

    def unpack(self, packed, shape):
        packed = packed.reshape(*shape[:-1], -1)
        codes = np.empty(shape, np.float32)
        codes[..., 0::2] = _E2M1[packed & 15]
        codes[..., 1::2] = _E2M1[packed >> 4]
        return codes


_E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
"""The numbers of float4_e2m1fn in the order of their bits."""


def _by_rows(
    function: Callable[[np.ndarray], np.ndarray],
    array: np.ndarray,
    shape: Shape,
    dtype: np.dtype,
) -> np.ndarray:
    """Returns `function` of all rows, a few at a time, as an array of this shape."""
    rows = array.reshape(-1, array.shape[-1])
    out = np.empty((len(rows), shape[-1]), dtype)
    step = max(1, _PIECE // max(1, math.prod(shape[-1:])))
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        out[piece] = function(rows[piece])
    return out.reshape(shape)
