"""A folder as `save_pretrained` writes it: config.json, weights, tokenizer."""

import functools
import os
import pathlib
from typing import Any

from maxfdl import outside
from maxfdl.data.tokenizers.saving import TOKENIZER_FILES
from maxfdl.errors import UserError
from maxfdl.outside import Object, Text, Values, shown
from maxfdl.paths import fetched
from maxfdl.tensors.hugging_face.config import Config, normalised
from maxfdl.tensors.hugging_face.quantization import scheme_of
from maxfdl.tensors.matching import has_own_head
from maxfdl.tensors.names import table_of
from maxfdl.tensors.quantized.reader import QuantizedReader, Scheme
from maxfdl.tensors.safetensors import INDEX, WHOLE, TensorReader

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
QUANTIZATION = "quantization_config"
"""Key of config.json that says how weights in few bits are stored."""

EXPORTED = (CONFIG, WHOLE, "model-*-of-*.safetensors", INDEX, *TOKENIZER_FILES)
"""Patterns of the files that an export may consist of."""

_WEIGHTS = "*.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Folder:
    """A model folder on disk; one in a bucket is copied into the cache first.

    Nothing else is downloaded, and no code in it is run.

    Args:
      path: The folder.

    Raises:
      UserError: If there is none, or it has no config.json.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = fetched(path, only=(*EXPORTED, _WEIGHTS))
        if not self._has(CONFIG):
            raise UserError(
                f"{path} must be a folder with a {CONFIG} and *.safetensors files, as"
                " Hugging Face writes them; download the model first."
            )

    @functools.cached_property
    def raw_config(self) -> dict[str, Any]:
        return dict(outside.read_object(self.path / CONFIG).content)

    @functools.cached_property
    def config(self) -> Config:
        """The normalised config.json, from which graphs are made.

        If config.json ties the head to the embedding but the files have a head that
        differs, it says that the head is not tied, as transformers 5 does.

        Raises:
          UserError: If there is no such model type here.
        """
        config = self._config_as_written
        return config | {"tie_word_embeddings": False} if self.unties_head else config

    @functools.cached_property
    def unties_head(self) -> bool:
        """Whether the files have a head that differs from the embedding, although
        config.json ties the two."""
        config = self._config_as_written
        if not config["tie_word_embeddings"] or not any(self.path.glob(_WEIGHTS)):
            return False
        return has_own_head(self.tensors(), table_of(config["model_type"]))

    @functools.cached_property
    def _config_as_written(self) -> Config:
        known = normalised(self.raw_config, str(self.path / CONFIG))
        # It is about the files, and the graph does not depend on it.
        return {key: value for key, value in known.items() if key != QUANTIZATION}

    @functools.cached_property
    def scheme(self) -> Scheme | None:
        """How weights are stored in few bits, or None if all are floating-point.

        Raises:
          UserError: If it is a way that is not read.
        """
        outer = Values(str(self.path / CONFIG), self.raw_config)
        for values in (outer, outer.within("text_config")):
            if values.take(QUANTIZATION, Object(), default=None):
                return scheme_of(values.within(QUANTIZATION))
        return None

    @property
    def remarks(self) -> list[str]:
        """Lines about choices between weights that a user may not expect."""
        lines = []
        if self._has(WHOLE) and self._has(INDEX):
            lines.append(
                f"{self.path} holds {WHOLE} and {INDEX}; the first is read, as"
                " transformers does. Take away the one that is left over."
            )
        if self.unties_head:
            lines.append(
                f"{self.path} has tie_word_embeddings (true) and a head that differs"
                " from the embedding; both are kept, as transformers does. Set it to"
                " false in config.json."
            )
        return lines

    @property
    def tokenizer(self) -> pathlib.Path | None:
        path = self.path / TOKENIZER
        return path if os.path.lexists(path) else None  # its reader checks the rest

    def tensors(self) -> TensorReader:
        """Returns the weights, unread.

        Those in few bits are read as float32.

        Raises:
          UserError: If they are missing, are no safetensors, or are stored in a way
            that is not read.
        """
        if self.scheme is None:
            return TensorReader(self._weight_files())
        return QuantizedReader(self._weight_files(), self.scheme)

    def _weight_files(self) -> list[pathlib.Path]:
        if self._has(WHOLE):
            return [self.path / WHOLE]
        if self._has(INDEX):
            return [self._inside(name) for name in self._indexed()]
        found = sorted(self.path.glob(_WEIGHTS))
        if found:
            return found
        if any(file for pattern in _PICKLED for file in self.path.glob(pattern)):
            raise UserError(
                f"{self.path} holds weights as pickles only, which could run any code;"
                " convert them to safetensors where you trust them."
            )
        raise UserError(f"{self.path} holds no *.safetensors file; fetch it again.")

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _indexed(self) -> list[str]:
        index = outside.read_object(self.path / INDEX)
        names = index.within("weight_map")
        files = [names.take(name, Text(least=1)) for name in names.content]
        return list(dict.fromkeys(files))

    def _inside(self, name: str) -> pathlib.Path:
        path = self.path / name
        if pathlib.PurePath(name).name != name or not self._has(name):
            raise UserError(
                f"{self.path / INDEX} names {shown(name)}, which is no file beside it;"
                " fetch the folder again."
            )
        return path
