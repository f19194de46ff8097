"""Kernels stored in a few bits: codes, and scales that groups of them share.

A weight is `number(code) * scale`. Everything here works on NumPy arrays, for tools
that read one tensor at a time, and on JAX arrays, inside and outside of a trace.
Letters: I inputs and O outputs of a kernel; leading dims number kernels of a kind.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.ops.numbers import NUMBERS, Name

Part = Literal["codes", "scales"]
Parts = dict[Part, Any]
Scales = Literal["float32", "bfloat16", "e8m0"]

# Below, float32 would lose digits of the scale, or all of it.
_LEAST = 2.0**-100


def _static() -> Any:
    return dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Codec:
    """How a kernel [..., I, O] is stored.

    Weights of a group of `inputs` x `outputs` share a scale. Last groups are shorter.

    Codes of 4 bits lie two in a byte, the even input in the lower half: they are uint8
    [..., ceil(I / 2), O]. All other codes are [..., I, O]. Scales are
    [..., ceil(I / inputs), ceil(O / outputs)].

    Args:
      numbers: Which numbers codes stand for, see `ops.numbers`.
      inputs: Contracted numbers of a group; None: all.
      outputs: Outputs of a group; None: all.
      scales: How a scale is stored. `e8m0`: powers of two, as the exponent plus 127 in
        a uint8, as in OCP Microscaling formats (MX) 1.0.
    """

    numbers: Name
    inputs: int | None = None
    outputs: int | None = 1
    scales: Scales = "float32"

    @staticmethod
    def check_config(node):
        for name in ("inputs", "outputs"):
            size = getattr(node, name)
            if size is not None and size < 1:
                yield f"Codec {name} ({size}) must be at least 1, or None for all."

    def declare(self, shape: tuple[int, ...]) -> dict[Part, tuple[tuple, str]]:
        """Returns shape and type of each part of a kernel [..., I, O]."""
        *batch, inputs, outputs = shape
        numbers = NUMBERS[self.numbers]
        rows = math.ceil(inputs / 2) if self.bits == 4 else inputs
        groups = _groups(inputs, self.inputs), _groups(outputs, self.outputs)
        dtype = "uint8" if self.scales == "e8m0" else self.scales
        return {
            "codes": ((*batch, rows, outputs), numbers.dtype),
            "scales": ((*batch, *groups), dtype),
        }

    def encode(self, kernel: Any) -> Parts:
        """Returns the parts of a kernel [..., I, O] of finite numbers.

        The greatest magnitude of a group becomes the greatest number that a code can
        be; where scales are powers of two, greater numbers become that, too. A group of
        zeros stays one.
        """
        xp = _library(kernel)
        kernel = kernel.astype(xp.float32)
        grouped = self._grouped(kernel)
        amax = xp.max(xp.abs(grouped), axis=(-3, -1), keepdims=True)
        stored = self._stored(amax, xp)
        scaled = grouped / self.read_scales(stored)
        codes = NUMBERS[self.numbers].encode(self._flat(scaled, kernel.shape))
        return {
            "codes": _in_pairs(codes) if self.bits == 4 else codes,
            "scales": xp.squeeze(stored, (-3, -1)),
        }

    def decode(self, parts: Parts, inputs: int) -> Any:
        """Returns the kernel [..., I, O] in float32, for I `inputs`."""
        xp = _library(parts["codes"])
        codes = parts["codes"]
        numbers = self.numbers_of(unpaired(codes, inputs) if self.bits == 4 else codes)
        scales = xp.expand_dims(self.read_scales(parts["scales"]), (-3, -1))
        return self._flat(self._grouped(numbers) * scales, numbers.shape)

    def apart(self, parts: Parts, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of a kernel [..., I, O], and the scale of each.

        Takes NumPy arrays alone.
        """
        codes = parts["codes"]
        codes = unpaired(codes, inputs) if self.bits == 4 else codes
        numbers = NUMBERS[self.numbers].decode(codes)
        grouped = self._grouped(numbers)
        scales = np.expand_dims(self.read_scales(parts["scales"]), (-3, -1))
        spread = np.broadcast_to(scales, grouped.shape)
        return numbers, self._flat(spread, numbers.shape)

    def exactly(self, numbers: np.ndarray, scales: np.ndarray) -> Parts | None:
        """Returns the parts of which these are `apart`, or None if there are none.

        Takes NumPy arrays alone.
        """
        grouped = self._grouped(scales)
        shared = grouped.max((-3, -1), keepdims=True)
        spread = self._flat(np.broadcast_to(shared, grouped.shape), scales.shape)
        codes = NUMBERS[self.numbers].exactly(numbers)
        if codes is None or not np.array_equal(spread, scales):
            return None
        if self.scales == "e8m0":
            exponent = np.clip(np.frexp(shared)[1] + 126, 0, 254)
            stored = exponent.astype(np.uint8)
        else:
            stored = shared.astype(self.scales)
        if not np.array_equal(self.read_scales(stored), shared):
            return None
        return {
            "codes": _in_pairs(codes) if self.bits == 4 else codes,
            "scales": np.squeeze(stored, (-3, -1)),
        }

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return NUMBERS[self.numbers].bits

    def numbers_of(self, codes: Any) -> Any:
        """Returns the numbers that codes stand for, one a code, in float32."""
        return NUMBERS[self.numbers].decode(codes)

    def _stored(self, amax: Any, xp: Any) -> Any:
        """Returns scales as they are stored, of the greatest magnitudes of groups."""
        most = NUMBERS[self.numbers].most
        if self.scales == "e8m0":
            # The exponent of the greatest number goes to that of the greatest code.
            exponent = _exponent(amax, xp) - math.frexp(most)[1] + 1
            exponent = xp.clip(exponent + 127, 1, 254)
            return xp.where(amax > 0, exponent, 127).astype(xp.uint8)
        # XLA takes a constant divisor for a factor, its inverse, so that scales would
        # differ in the last bit from those that NumPy makes. This is no constant.
        divisor = xp.where(amax > 0, xp.float32(most), xp.float32(1))
        dividend = xp.where(amax > 0, xp.maximum(amax, xp.float32(_LEAST)), 1)
        return (dividend / divisor).astype(self.scales)

    def read_scales(self, stored: Any) -> Any:
        """Returns stored scales in float32."""
        xp = _library(stored)
        if self.scales != "e8m0":
            return stored.astype(xp.float32)
        # 2^-127 is below what the exponent of a normal float32 holds.
        bits = stored.astype(xp.int32)
        return xp.where(bits > 0, bits << 23, 1 << 22).view(xp.float32)

    def _grouped(self, x: Any) -> Any:
        """Returns [..., groups of I, I of a group, groups of O, O of a group].

        Last groups are filled up with zeros.
        """
        xp = _library(x)
        *batch, inputs, outputs = x.shape
        rows, columns = self.inputs or inputs, self.outputs or outputs
        fill = [(0, -inputs % rows), (0, -outputs % columns)]
        if fill != [(0, 0)] * 2:
            x = xp.pad(x, [*[(0, 0)] * len(batch), *fill])
        across, along = x.shape[-2] // rows, x.shape[-1] // columns
        return x.reshape(*batch, across, rows, along, columns)

    def _flat(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Returns what `_grouped` grouped, without what it was filled up with."""
        *batch, across, rows, along, columns = x.shape
        x = x.reshape(*batch, across * rows, along * columns)
        return x[..., : shape[-2], : shape[-1]]


@dataclasses.dataclass(frozen=True)
class Simulated:
    """Storage that a kernel is trained for, and not yet stored in.

    The kernel stays one array in the type of parameters. Products are given the numbers
    that the codec would store, and gradients go straight through that: what is trained
    so loses nothing when it is packed. Quantisation-aware training, Jacob et al. 2018,
    https://arxiv.org/abs/1712.05877.

    Args:
      codec: How the kernel will be stored.
    """

    codec: Codec


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedKernel:
    """A kernel that is stored in parts, as a product is given it.

    Args:
      codes, scales: The parts, of one kernel or of several along leading dims.
      codec: What made them.
      inputs, outputs: The dims of the kernel, [..., *inputs, *outputs].
    """

    codes: Any
    scales: Any
    codec: Codec = _static()
    inputs: tuple[int, ...] = _static()
    outputs: tuple[int, ...] = _static()

    def at(self, index: Any) -> "PackedKernel":
        """Returns one of the kernels along the first dim."""
        codes, scales = self.codes[index], self.scales[index]
        return dataclasses.replace(self, codes=codes, scales=scales)

    def unpacked(self, dtype: Any = "float32") -> Any:
        """Returns the kernel as one array."""
        parts: Parts = {"codes": self.codes, "scales": self.scales}
        flat = self.codec.decode(parts, math.prod(self.inputs))
        return flat.reshape(*flat.shape[:-2], *self.inputs, *self.outputs).astype(dtype)


def _groups(size: int, of: int | None) -> int:
    return 1 if of is None else math.ceil(size / of)


def _in_pairs(codes: Any) -> Any:
    """Returns codes of 4 bits [..., I, O] two in a byte."""
    xp = _library(codes)
    if codes.shape[-2] % 2:
        codes = xp.pad(codes, [*[(0, 0)] * (codes.ndim - 2), (0, 1), (0, 0)])
    return codes[..., 0::2, :] | (codes[..., 1::2, :] << 4)


def unpaired(pairs: Any, inputs: int) -> Any:
    """Returns the codes [..., I, O] of 4 bits that lie two in a byte."""
    xp = _library(pairs)
    codes = xp.stack([pairs & 15, pairs >> 4], axis=-2)
    *batch, rows, outputs = pairs.shape
    return codes.reshape(*batch, 2 * rows, outputs)[..., :inputs, :]


def _exponent(x: Any, xp: Any) -> Any:
    """Returns `floor(log2(x))` of normal numbers, exactly."""
    return (x.view(xp.int32) >> 23) - 127


def _library(x: Any) -> Any:
    return np if isinstance(x, np.ndarray) else jnp
