"""Reads tensors of files in which some weights are stored in few bits."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from maxfdl.errors import UserError
from maxfdl.tensors.quantized.codec import Codec
from maxfdl.tensors.quantized.codes import Shape
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.safetensors import TensorReader, code_of, is_supported

_SCALES = ("U8", "F8_E8M0", "F8_E4M3")
_OF_ACTIVATIONS = tuple(
    f"{what}_{kind}"
    for what in ("input", "output", "activation", ".q", ".k", ".v")
    for kind in ("scale", "zero_point", "global_scale")
)
"""How the names of tensors end that quantise activations, and caches."""


class Scheme(Protocol):
    """What a file says of how its weights are stored."""

    def codecs(self, names: Iterable[str]) -> Mapping[str, Codec]:
        """Returns the codec of each weight that is stored in few bits, by its name."""
        ...


@dataclasses.dataclass(frozen=True)
class Stored:
    """A weight in few bits: its codec, names of its tensors, and its shape there."""

    codec: Codec
    names: Mapping[str, str]
    shape: Shape


class QuantizedReader(TensorReader):
    """Tensors of several files, of which those in few bits are read as float32.

    Their codes, scales and zero points have no names here: the weight has.

    Raises:
      UserError: As `TensorReader`, or if tensors of a weight are missing, or are not of
        the shape or type that the scheme has.
    """

    def __init__(self, files: Iterable[pathlib.Path], scheme: Scheme):
        super().__init__(files)
        names = super().names()
        self._stored = {
            name: self._describe(name, codec)
            for name, codec in scheme.codecs(names).items()
        }
        parts = {each for of in self._stored.values() for each in of.names.values()}
        rest = [name for name in names if name not in parts]
        self._plain = [name for name in rest if not name.endswith(_OF_ACTIVATIONS)]
        self.of_activations = len(rest) - len(self._plain)

    def names(self) -> list[str]:
        return [*self._plain, *self._stored]

    def path(self, name: str) -> pathlib.Path:
        return super().path(self._first(name))

    def shape(self, name: str) -> Shape:
        stored = self._stored.get(name)
        if stored is None:
            return super().shape(name)
        *batch, rows, columns = stored.shape
        if stored.codec.transposed:
            rows, columns = columns, rows
        return (*batch, rows, columns)

    def dtype(self, name: str) -> np.dtype | None:
        return None if name in self._stored else super().dtype(name)

    def code(self, name: str) -> str:
        return "F32" if name in self._stored else super().code(name)

    def read(self, name: str) -> np.ndarray:
        stored = self._stored.get(name)
        if stored is None:
            return super().read(name)
        return stored.codec.decode(self.parts(name), stored.shape)

    def rounded(self, name: str) -> Rounded | None:
        stored = self._stored.get(name)
        return stored and stored.codec.apart(self.parts(name), stored.shape)

    def stored(self, name: str) -> Stored | None:
        """Returns how a weight is stored, or None if it is not in few bits."""
        return self._stored.get(name)

    def parts(self, name: str) -> dict[str, np.ndarray]:
        """Returns the tensors of a weight in few bits, as they are."""
        names = self._stored[name].names
        return {part: super(QuantizedReader, self).read(n) for part, n in names.items()}

    def are_equal(self, name: str, other: str) -> bool:
        if name in self._stored or other in self._stored:
            return np.array_equal(self.read(name), self.read(other))
        return super().are_equal(name, other)

    def _first(self, name: str) -> str:
        stored = self._stored.get(name)
        return name if stored is None else stored.names[stored.codec.codes.part]

    def _describe(self, name: str, codec: Codec) -> Stored:
        names = {part: name + part for part in codec.parts}
        missing = [each for each in names.values() if not self.holds(each)]
        if missing:
            raise UserError(
                f"{name} is stored in few bits, but {', '.join(missing)} is missing;"
                " fetch the folder again."
            )
        shapes = {
            part: super(QuantizedReader, self).shape(n) for part, n in names.items()
        }
        told = None
        if "_shape" in names:
            told = tuple(map(int, super().read(names["_shape"]).reshape(-1)))
        shape = codec.stored_shape(shapes, told)
        problem = self._type_problem(names, codec) or codec.problem(shape, shapes)
        if problem is not None:
            path = super().path(names[codec.codes.part])
            raise UserError(f"{path}: {name} {problem}; fetch the folder again.")
        return Stored(codec, names, shape)

    def _type_problem(self, names: Mapping[str, str], codec: Codec) -> str | None:
        codes, wanted = (
            super().code(names[codec.codes.part]),
            code_of(codec.codes.dtype),
        )
        if codes != wanted:
            return f"has codes of type {codes} (must be {wanted})"
        scales = super().code(names[codec.scale])
        if not is_supported(scales) and scales not in _SCALES:
            return f"has scales of type {scales}, which is not read"
        return None
