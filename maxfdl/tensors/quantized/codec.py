"""Codecs: weights as codes and scales.

`w[r, c] = s[r // R, c // C] (q[r, c] - z[r // R, c // C])`, where q are codes, s scales
and z zero points, one for each block of R rows and C columns. The last block of a dim
may be smaller.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from maxfdl.tensors.quantized.codes import Codes, PackedInt, Shape
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.safetensors import Spec

Parts = Mapping[str, np.ndarray]
"""Tensors that belong to one weight, by what their names add to its name."""

E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_POWERS = (np.dtype(np.uint8), E8M0)
"""Types of scales that are powers of two: `2**(byte - 127)`."""


@dataclasses.dataclass(frozen=True)
class Block:
    """The part of a weight that has one scale; None is all rows, or all columns."""

    rows: int | None
    columns: int | None

    def number(self, shape: Shape) -> Shape:
        """Returns how many scales a weight of this shape has: [..., rows, columns]."""
        rows, columns = self.of(shape)
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))

    def of(self, shape: Shape) -> tuple[int, int]:
        return self.rows or max(1, shape[-2]), self.columns or max(1, shape[-1])

    def greatest(self, w: np.ndarray) -> np.ndarray:
        """Returns the greatest magnitude in each block."""
        rows, _ = self.of(w.shape)
        starts = range(0, w.shape[-2], rows)
        found = np.empty(self.number(w.shape), np.float32)
        for i, columns in self.columns_of(w.shape):
            of_rows = np.abs(w[..., columns]).max(-1)
            found[..., i] = np.maximum.reduceat(of_rows, starts, -1)
        return found

    def spread(self, scales: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns a scale for each row, and each block of columns."""
        rows, _ = self.of(shape)
        return np.repeat(scales, rows, -2)[..., : shape[-2], :]

    def columns_of(self, shape: Shape) -> Iterator[tuple[int, slice]]:
        """Yields the number of each block of columns, and its columns."""
        _, size = self.of(shape)
        for i, start in enumerate(range(0, shape[-1], size)):
            yield i, slice(start, start + size)


@dataclasses.dataclass(frozen=True)
class Codec:
    """How one weight is stored: the codes, and their scales.

    Args:
      codes: The codes, and how they are packed.
      block: What has one scale.
      scale: What the name of the scales adds to that of the weight.
      scale_dtype: Type of the scales, where they are written. Read are all.
      zeros: How zero points are packed, an int32 holding those of several rows; None:
        there are none. Those are read, and never written.
      global_scale: Whether all scales are divided by one more; read, never written.
      transposed: Whether the weight itself is [..., columns, rows].
    """

    codes: Codes
    block: Block
    scale: str = "_scale"
    scale_dtype: np.dtype = np.dtype(np.float32)
    zeros: Codes | None = None
    global_scale: bool = False
    transposed: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """What the names of the tensors add to the name of the weight."""
        found = [self.codes.part, self.scale]
        if isinstance(self.codes, PackedInt):
            found.append("_shape")
        if self.zeros is not None:
            found.append("_zero_point")
        if self.global_scale:
            found.append("_global_scale")
        return tuple(found)

    def stored_shape(
        self, shapes: Mapping[str, Shape], told: tuple[int, ...] | None
    ) -> Shape:
        """Returns the shape of the weight as stored, [..., rows, columns].

        Args:
          shapes: Of the tensors.
          told: What the part `_shape` holds, if there is one.
        """
        packed = shapes[self.codes.part]
        shape = self.codes.shape(packed)
        if shape is None:
            assert told is not None
            return (*packed[: len(packed) - len(told)], *told)
        return shape

    def problem(self, shape: Shape, shapes: Mapping[str, Shape]) -> str | None:
        """Returns what is wrong with the shapes of the tensors of a weight, or None."""
        if len(shape) < 2 or min(shape) < 0:
            return f"has the shape {list(shape)}, which is no matrix"
        wanted = {self.codes.part: self.codes.packed_shape(shape)}
        number = self.block.number(shape)
        wanted[self.scale] = number
        if self.zeros is not None:
            wanted["_zero_point"] = self._zeros_shape(number)
        for part, expected in wanted.items():
            found = shapes[part]
            if _without_ones(found) != _without_ones(expected):
                return f"has {part or 'codes'} {list(found)} (must be {list(expected)})"
        return None

    def decode(self, parts: Parts, shape: Shape) -> np.ndarray:
        """Returns a weight in float32, of whose stored form this is the shape."""
        w, scales = self._read(parts, shape)
        for i, columns in self.block.columns_of(shape):
            w[..., columns] *= scales[..., i, None]
        return w.swapaxes(-1, -2) if self.transposed else w

    def apart(self, parts: Parts, shape: Shape) -> Rounded:
        """Returns a weight as its numbers, less zero points, and the scale of each."""
        return self._rounded(*self._read(parts, shape))

    def as_rounded(self, codes: np.ndarray, scales: np.ndarray) -> Rounded:
        """Returns the weight of codes, and of scales of blocks."""
        return self._rounded(codes, self.block.spread(scales, codes.shape))

    def exactly(self, w: Rounded) -> dict[str, np.ndarray] | None:
        """Returns the tensors of which `w` is read, or None if there are none."""
        numbers, scales = w.numbers, w.scales
        if self.transposed:
            numbers, scales = numbers.swapaxes(-1, -2), scales.swapaxes(-1, -2)
        shared = self.block.greatest(scales)
        spread = self.block.spread(shared, scales.shape)
        for i, columns in self.block.columns_of(scales.shape):
            if np.any(scales[..., columns] != spread[..., i, None]):
                return None
        stored = shared.astype(self._scale_type).astype(np.float32)
        if not np.array_equal(stored, shared) or not self.codes.holds(numbers):
            return None
        return self.pack(numbers, shared)

    def _rounded(self, numbers: np.ndarray, of_rows: np.ndarray) -> Rounded:
        """Returns a weight of numbers and of the scales of rows, by block."""
        scales = np.empty(numbers.shape, np.float32)
        for i, columns in self.block.columns_of(numbers.shape):
            scales[..., columns] = of_rows[..., i, None]
        if self.transposed:
            return Rounded(numbers.swapaxes(-1, -2), scales.swapaxes(-1, -2))
        return Rounded(numbers, scales)

    def _read(self, parts: Parts, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Returns numbers less zero points, and the scales of rows, by block."""
        w = self.codes.unpack(parts[self.codes.part], shape)
        number = self.block.number(shape)
        scales = _as_float(parts[self.scale]).reshape(number)
        if self.global_scale:
            scales = scales / parts["_global_scale"].reshape(())
        if self.zeros is not None:
            zeros = self.block.spread(self._zero_points(parts, number), shape)
            for i, columns in self.block.columns_of(shape):
                w[..., columns] -= zeros[..., i, None]
        return w, self.block.spread(scales, shape)

    def scales_of(self, w: np.ndarray) -> np.ndarray:
        """Returns scales with which the greatest number in a block is `most`.

        Powers of two are those of the OCP standard on microscaling formats, section
        6.3: the greatest number may be up to twice `most`. The scale of zeros is 1.

        Args:
          w: A weight, [..., rows, columns].
        """
        amax = self.block.greatest(w)
        safe = np.where(amax > 0, amax, 1)
        if self.scale_dtype in _POWERS:
            exponent = np.frexp(safe)[1] - np.frexp(np.float32(self.codes.most))[1]
            scales = np.ldexp(np.float32(1), np.clip(exponent, -127, 127))
        else:
            scales = safe / np.float32(self.codes.most)
        scales = np.where(amax > 0, scales, 1)
        scales = scales.astype(self._scale_type).astype(np.float32)
        return np.where(scales > 0, scales, 1)

    def codes_of(self, w: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Returns the codes nearest to `w` divided by its scales."""
        q, spread = np.empty(w.shape, np.float32), self.block.spread(scales, w.shape)
        for i, columns in self.block.columns_of(w.shape):
            q[..., columns] = self.codes.nearest(w[..., columns] / spread[..., i, None])
        return q

    def encode(self, w: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the tensors of a weight, by what they add to its name."""
        w = w.astype(np.float32)
        w = w.swapaxes(-1, -2) if self.transposed else w
        scales = self.scales_of(w)
        return self.pack(self.codes_of(w, scales), scales)

    def pack(self, codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the tensors that hold codes and scales, given in float32."""
        scales = scales.astype(self._scale_type)
        parts = {
            self.codes.part: self.codes.pack(codes),
            self.scale: scales.view(self.scale_dtype),
        }
        if "_shape" in self.parts:
            parts["_shape"] = np.array(codes.shape[-2:], np.int64)
        return parts

    def specs(self, shape: Shape) -> dict[str, Spec]:
        """Returns shape and type of the tensors of a weight of this shape."""
        if self.transposed:
            shape = (*shape[:-2], shape[-1], shape[-2])
        specs = {
            self.codes.part: (self.codes.packed_shape(shape), self.codes.dtype),
            self.scale: (self.block.number(shape), self.scale_dtype),
        }
        if "_shape" in self.parts:
            specs["_shape"] = ((2,), np.dtype(np.int64))
        return specs

    @property
    def _scale_type(self) -> np.dtype:
        return E8M0 if self.scale_dtype in _POWERS else self.scale_dtype

    def _zeros_shape(self, number: Shape) -> Shape:
        """Zero points are packed along rows, where weights are along columns."""
        assert self.zeros is not None
        *batch, rows, columns = number
        *batch, columns, rows = self.zeros.packed_shape((*batch, columns, rows))
        return (*batch, rows, columns)

    def _zero_points(self, parts: Parts, number: Shape) -> np.ndarray:
        assert self.zeros is not None
        found = parts["_zero_point"].reshape(self._zeros_shape(number))
        *batch, rows, columns = number
        unpacked = self.zeros.unpack(found.swapaxes(-1, -2), (*batch, columns, rows))
        return unpacked.swapaxes(-1, -2)


def _as_float(scales: np.ndarray) -> np.ndarray:
    bits = scales.view(E8M0) if scales.dtype == np.uint8 else scales
    return bits.astype(np.float32)


def _without_ones(shape: Shape) -> Shape:
    """A scale of a whole dim may come with that dim, or without."""
    return tuple(size for size in shape if size != 1)
