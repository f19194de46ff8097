"""A folder as `save_pretrained` writes it: config.json, weights, tokenizer."""

import functools
import json
import os
import pathlib
from typing import Any

from maxfdl.errors import UserError
from maxfdl.hf.config import Config, normalised
from maxfdl.hf.tensors import INDEX, TensorReader

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Folder:
    """A model folder on disk. Nothing is fetched, and no code in it is run.

    Args:
      path: The folder.

    Raises:
      UserError: If there is none, or it has no config.json.
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path).expanduser()
        if not (self.path / CONFIG).is_file():
            raise UserError(
                f"{path} must be a folder with a {CONFIG} and *.safetensors files, as"
                " Hugging Face writes them; download the model first."
            )

    @functools.cached_property
    def raw_config(self) -> dict[str, Any]:
        return _read_json(self.path / CONFIG)

    @functools.cached_property
    def config(self) -> Config:
        """config.json in the one layout that graphs are made from.

        Raises:
          UserError: If there is no such model type here, or weights are quantised.
        """
        if self.raw_config.get("quantization_config"):
            raise UserError(
                f"{self.path / CONFIG} has a quantization_config; give a folder with"
                " weights of float32, bfloat16 or float16."
            )
        return normalised(self.raw_config)

    @property
    def tokenizer(self) -> pathlib.Path | None:
        path = self.path / TOKENIZER
        return path if os.path.lexists(path) else None  # its reader checks the rest

    def tensors(self) -> TensorReader:
        """Returns the weights, unread.

        Raises:
          UserError: If they are missing, or are no safetensors.
        """
        return TensorReader(self._weight_files())

    def _weight_files(self) -> list[pathlib.Path]:
        whole = self.path / "model.safetensors"
        if (self.path / INDEX).is_file():
            return [self._inside(name) for name in self._indexed()]
        if whole.is_file():
            return [whole]
        found = sorted(self.path.glob("*.safetensors"))
        if found:
            return found
        if any(file for pattern in _PICKLED for file in self.path.glob(pattern)):
            raise UserError(
                f"{self.path} holds weights as pickles only, which could run any code;"
                " convert them to safetensors where you trust them."
            )
        raise UserError(f"{self.path} holds no *.safetensors file; fetch it again.")

    def _indexed(self) -> list[str]:
        names = _read_json(self.path / INDEX).get("weight_map", {}).values()
        return list(dict.fromkeys(names))

    def _inside(self, name: str) -> pathlib.Path:
        path = self.path / name
        if pathlib.PurePath(name).name != name or not path.is_file():
            raise UserError(
                f"{self.path / INDEX} names {name}, which is no file beside it; fetch"
                " the folder again."
            )
        return path


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object.")
    return content
