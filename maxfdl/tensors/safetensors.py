"""Tensors in safetensors files: read and written one at a time.

Tensors are read by `pread` and not memory-mapped, so that those that were read do not
stay in memory. 16-bit types are not converted.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from maxfdl import outside
from maxfdl.errors import UserError

SHARD_BYTES = 5_000_000_000
_PIECE = 2**22  # numbers that are compared at a time
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_CODES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_BYTES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""Types that the library does not read as NumPy arrays."""

_CODE_OF = {dtype: code for code, dtype in (_CODES | _BYTES).items()} | {
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape and type of a tensor."""


class TensorReader:
    """The tensors of several files, by name.

    Attributes:
      of_activations: Number of tensors that say how activations are quantised, which
        are not among the names.

    Raises:
      UserError: If a file is missing or incomplete, or if two hold the same tensor.
    """

    of_activations = 0

    def __init__(self, files: Iterable[pathlib.Path]):
        self._file_of: dict[str, Any] = {}
        self._path_of: dict[str, pathlib.Path] = {}
        for path in files:
            outside.check_file(path)
            with _explain_failure(path):
                file = safe_open(path, "np", backend="pread")
                names = file.keys()
            for name in names:
                if name in self._path_of:
                    raise UserError(
                        f"{path} and {self._path_of[name].name} beside it both hold"
                        f" {name}; take away the file that is left over."
                    )
                self._file_of[name], self._path_of[name] = file, path

    def names(self) -> list[str]:
        return list(self._file_of)

    def holds(self, name: str) -> bool:
        return name in self._file_of

    def path(self, name: str) -> pathlib.Path:
        """Returns the file that holds a tensor."""
        return self._path_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape(name)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> np.dtype | None:
        """Returns the type of weights, or None if the tensor has no such type."""
        return _CODES.get(self.code(name))

    def code(self, name: str) -> str:
        """Returns the type as the format writes it, such as `BF16`."""
        return self._file_of[name].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        path, dtype = self._path_of[name], _BYTES.get(TensorReader.code(self, name))
        with _explain_failure(path):
            if dtype is not None:
                return _read_bytes(path, name).view(dtype).reshape(self._shape(name))
            return self._file_of[name].get_tensor(name)

    def are_equal(self, name: str, other: str) -> bool:
        """Says whether two tensors hold the same values; reads them piece by piece."""
        slices = [self._file_of[each].get_slice(each) for each in (name, other)]
        shapes = [each.get_shape() for each in slices]
        if shapes[0] != shapes[1] or not shapes[0]:
            return False
        if not all(is_supported(each.get_dtype()) for each in slices):
            return False
        count, *rest = shapes[0]
        rows = max(1, _PIECE // max(1, math.prod(rest)))
        pieces = [slice(i, min(i + rows, count)) for i in range(0, count, rows)]
        with _explain_failure(self._path_of[name]):
            return all(
                np.array_equal(*(each[piece] for each in slices)) for piece in pieces
            )


@contextlib.contextmanager
def _explain_failure(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}); fetch it again."
        ) from None


def is_supported(code: str) -> bool:
    """Says whether weights may be of this type; types of 8 bits or less need scales."""
    return code in _CODES


def code_of(dtype: np.dtype) -> str:
    """Returns a type as the format writes it, such as `BF16`."""
    return _CODE_OF[dtype]


def _read_bytes(path: pathlib.Path, name: str) -> np.ndarray:
    """Returns the bytes of a tensor."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        start, end = json.loads(file.read(length))[name]["data_offsets"]
        file.seek(8 + length + start)
        return np.fromfile(file, np.uint8, end - start)


class TensorWriter:
    """Writes tensors into as many files as it takes, under Hugging Face's names.

    The files are laid out beforehand, so tensors may be written in any order, and none
    is kept in memory. The files are complete when the `with` block ends without error.

    Args:
      folder: An empty folder.
      specs: Shape and type of every tensor, in the order of the files.
      shard_bytes: Largest size of a file, unless one tensor alone is larger.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        specs: Mapping[str, Spec],
        shard_bytes: int = SHARD_BYTES,
    ):
        self._folder = folder
        self._specs = specs
        self._shards = _shards(specs, shard_bytes)
        self._place: dict[str, tuple[IO[bytes], int]] = {}
        self._open: list[IO[bytes]] = []

    def __enter__(self) -> "TensorWriter":
        for file_name, shard in zip(self._names(), self._shards, strict=True):
            file = open(self._folder / file_name, "wb")
            self._open.append(file)
            for name, offset in self._write_header(file, shard).items():
                self._place[name] = file, offset
        return self

    def write(self, name: str, values: np.ndarray) -> None:
        shape, dtype = self._specs[name]
        assert (values.shape, values.dtype) == (shape, dtype), name
        file, offset = self._place.pop(name)
        file.seek(offset)
        file.write(np.ascontiguousarray(values).view(np.uint8).data)

    def __exit__(self, kind: type | None, error: Any, _: Any) -> None:
        for file in self._open:
            file.close()
        if kind is None:
            assert not self._place, f"not written: {list(self._place)}"
            self._write_index()

    def _names(self) -> list[str]:
        count = len(self._shards)
        if count == 1:
            return [WHOLE]
        return [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]

    def _write_header(self, file: IO[bytes], shard: list[str]) -> dict[str, int]:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for name in shard:
            shape, dtype = self._specs[name]
            end = start + _num_bytes(self._specs[name])
            header[name] = {
                "dtype": _CODE_OF[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            start = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        data = 8 + len(text)
        file.truncate(data + start)
        return {name: data + header[name]["data_offsets"][0] for name in shard}

    def _write_index(self) -> None:
        if len(self._shards) == 1:
            return
        content = {
            "metadata": {"total_size": sum(map(_num_bytes, self._specs.values()))},
            "weight_map": {
                name: file
                for file, shard in zip(self._names(), self._shards, strict=True)
                for name in shard
            },
        }
        text = json.dumps(content, indent=2) + "\n"
        (self._folder / INDEX).write_text(text, encoding="utf-8")


def _num_bytes(spec: Spec) -> int:
    shape, dtype = spec
    return math.prod(shape) * dtype.itemsize


def _shards(specs: Mapping[str, Spec], shard_bytes: int) -> list[list[str]]:
    """Returns the names in each file, which are filled in order."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, spec in specs.items():
        size = _num_bytes(spec)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    return shards
