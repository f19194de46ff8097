"""What a GGUF file says: settings by name, and tensors made float again."""

import math
import mmap
import pathlib
from collections.abc import Iterator

import numpy as np

from maxfdl import outside
from maxfdl.errors import UserError
from maxfdl.gguf.header import HeaderError, TensorPlace, read_header
from maxfdl.outside import Values


class GgufFile:
    """A file, read as far as it is asked for.

    Args:
      path: The file.

    Attributes:
      settings: The values in its header, by kind as those of a JSON file.

    Raises:
      UserError: If it is no such file, or the package `gguf` is missing.
    """

    def __init__(self, path: pathlib.Path):
        outside.check_file(path)
        try:
            import gguf  # noqa: F401 (needed by `tensors`, after a long read)
        except ImportError:
            raise UserError(
                "GGUF files need the package gguf; pip install 'maxfdl[gguf]'."
            ) from None
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = read_header(self._data)
        except (HeaderError, OSError, ValueError) as error:  # ValueError: it is empty
            raise UserError(
                f"{path} is no whole GGUF file: {error}; fetch it again."
            ) from None
        self.settings = Values(str(path), header.settings)
        self._places = header.tensors
        for name, place in self._places.items():
            self._check(name, place)

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor, slowest dim first.

        Raises:
          UserError: If there is no such tensor.
        """
        if name not in self._places:
            raise self.wrong(f"holds no tensor {name!r}")
        return self._places[name].shape

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each tensor in float32."""
        from gguf import GGMLQuantizationType, dequantize

        for name, place in self._places.items():
            kind = GGMLQuantizationType(place.kind)
            size = _num_bytes(place)
            assert size is not None  # `_check` has refused such a tensor
            data = np.frombuffer(self._data, np.uint8, size, place.offset)
            try:
                values = dequantize(data.reshape(*place.shape[:-1], -1), kind)
            except NotImplementedError:
                raise self.wrong(
                    f"holds {name!r} in {kind.name}, which the package gguf cannot read"
                ) from None
            yield name, values.astype(np.float32, copy=False).reshape(place.shape)

    def wrong(self, problem: str) -> UserError:
        """Returns the error that the file `problem`."""
        return UserError(
            f"{self.path} {problem}; use another file of this model, or its"
            " safetensors."
        )

    def _check(self, name: str, place: TensorPlace) -> None:
        """Refuses a tensor that is not whole, or of no type that is known."""
        if not place.shape or not math.prod(place.shape):
            raise self.wrong(f"holds {name!r} of shape {place.shape}")
        size = _num_bytes(place)
        if size is None:
            raise self.wrong(f"holds {name!r} in an unknown type ({place.kind})")
        if place.offset + size > len(self._data):
            raise UserError(f"{self.path} ends in {name!r}; fetch it again.")


def _num_bytes(place: TensorPlace) -> int | None:
    """Returns the bytes of a tensor, None if its type or its rows do not exist."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType(place.kind)]
    except (KeyError, ValueError):
        return None
    blocks, rest = divmod(place.shape[-1], values)
    return None if rest else math.prod(place.shape[:-1]) * blocks * size
