"""The header of a GGUF file: settings, and where each tensor is.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package
`gguf` reads it too, but trusts the counts in it: with one flipped byte it fills the
memory. Here every count is held against the bytes that are left.
"""

import dataclasses
import mmap
from typing import Any

import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_ARRAY = 2**24  # entries; the largest vocabularies have 2**20 merges
_DEEPEST = 4  # arrays in arrays
_MOST_DIMS = 4

_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9


class HeaderError(Exception):
    """A file that breaks the format; the message says how."""


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is in the file.

    Args:
      shape: Sizes, slowest dim first, where the file has it last.
      kind: Number of its type in ggml.
      offset: Of its first byte in the file.
    """

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class Header:
    settings: dict[str, Any]
    tensors: dict[str, TensorPlace]


def read_header(data: mmap.mmap) -> Header:
    """Returns the header of a file.

    Raises:
      HeaderError: If it is no such file, or breaks the format.
    """
    reader = _Reader(data)
    if reader.take(4, "the magic bytes") != _MAGIC:
        raise HeaderError("it does not begin with GGUF")
    version = reader.integer(4, "the version")
    if version not in _VERSIONS:
        raise HeaderError(f"it has version {version}, which must be 2 or 3")
    num_tensors = reader.integer(8, "the number of tensors")
    num_settings = reader.integer(8, "the number of settings")
    settings: dict[str, Any] = {}
    for _ in range(num_settings):
        name = reader.string("the name of a setting")
        if name in settings:
            raise HeaderError(f"it has {name!r} twice")
        settings[name] = reader.value(reader.integer(4, repr(name)), repr(name))
    places = {}
    for _ in range(num_tensors):
        name, place = reader.tensor_place()
        if name in places:
            raise HeaderError(f"it has the tensor {name!r} twice")
        places[name] = place
    start = _aligned(reader.at, settings.get("general.alignment", 32))
    return Header(
        settings,
        {
            name: dataclasses.replace(place, offset=start + place.offset)
            for name, place in places.items()
        },
    )


def _aligned(at: int, alignment: Any) -> int:
    is_power = isinstance(alignment, int) and 0 < alignment <= 2**20
    if not is_power or alignment & (alignment - 1):
        raise HeaderError(f"general.alignment ({alignment}) must be a power of 2")
    return -(-at // alignment) * alignment


class _Reader:
    """Reads one thing after the other, and never past the end."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.at = 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self._data) - self.at:
            raise HeaderError(f"it ends in {what}")
        self.at += size
        return self._data[self.at - size : self.at]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def string(self, what: str) -> str:
        data = self.take(self.integer(8, what), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise HeaderError(f"{what} is not UTF-8") from None

    def value(self, kind: int, name: str, depth: int = 0) -> Any:
        """Returns a value in Python's types, an array as a list."""
        if kind in _SCALARS:
            (value,) = self._scalars(kind, 1, name)
            return value
        if kind == _STRING:
            return self.string(name)
        if kind == _ARRAY and depth < _DEEPEST:
            return self._array(name, depth + 1)
        raise HeaderError(f"{name} has a value of the unknown type {kind}")

    def _array(self, name: str, depth: int) -> list[Any]:
        kind, count = self.integer(4, name), self.integer(8, name)
        if count > _LONGEST_ARRAY:
            raise HeaderError(f"{name} claims {count:,} entries")
        if kind in _SCALARS:
            return self._scalars(kind, count, name)
        return [self.value(kind, name, depth) for _ in range(count)]

    def _scalars(self, kind: int, count: int, name: str) -> list[Any]:
        dtype = _SCALARS[kind]
        return np.frombuffer(self.take(count * dtype.itemsize, name), dtype).tolist()

    def tensor_place(self) -> tuple[str, TensorPlace]:
        name = self.string("the name of a tensor")
        what = f"the tensor {name!r}"
        num_dims = self.integer(4, what)
        if num_dims > _MOST_DIMS:
            raise HeaderError(f"{what} claims {num_dims:,} dims")
        sizes = [self.integer(8, what) for _ in range(num_dims)]
        kind, offset = self.integer(4, what), self.integer(8, what)
        return name, TensorPlace(tuple(reversed(sizes)), kind, offset)
