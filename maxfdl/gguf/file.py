"""What a GGUF file says: settings by name, and tensors made float again.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from maxfdl.errors import UserError


class GgufFile:
    """A file, read as far as it is asked for.

    Args:
      path: The file.

    Raises:
      UserError: If it is no such file, or the package `gguf` is missing.
    """

    def __init__(self, path: pathlib.Path):
        if not path.is_file():
            raise UserError(f"{path} must be a GGUF file, but there is no such file.")
        try:
            from gguf import GGUFReader
        except ImportError:
            raise UserError(
                "GGUF files need the package gguf; pip install 'maxfdl[gguf]'."
            ) from None
        self.path = path
        try:
            self._reader = GGUFReader(path)
        except Exception as error:  # whatever comes of parsing another format
            raise UserError(f"{path} is no whole GGUF file ({error}).") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def setting(self, name: str, default: Any = None) -> Any:
        """Returns a value of the file's header."""
        field = self._reader.get_field(name)
        return default if field is None else field.contents()

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape, slowest dim first, where the file has it last."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields each tensor in float32."""
        from gguf import dequantize

        for name, tensor in self._tensors.items():
            values = dequantize(tensor.data, tensor.tensor_type)
            yield name, values.astype(np.float32, copy=False).reshape(self.shape(name))
