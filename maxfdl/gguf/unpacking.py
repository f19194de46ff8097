"""A GGUF file as a model folder of Hugging Face."""

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from maxfdl import hf
from maxfdl.files import cache_directory
from maxfdl.gguf.file import GgufFile
from maxfdl.gguf.llama import check_tensors, config_of, name_of, values_of
from maxfdl.gguf.tokenizer import write_tokenizer
from maxfdl.hf.loading import Backend, Loaded
from maxfdl.paths import fetched
from maxfdl.tensors.safetensors import TensorWriter

_FORMAT = 2  # goes up where the same file becomes another folder


def load(path: str | os.PathLike, backend: Backend = "nnx", **kwargs: Any) -> Loaded:
    """Returns what `hf.load` does, of a GGUF file; other arguments are those of it."""
    return hf.load(unpack(path), backend, **kwargs)


def unpack(path: str | os.PathLike) -> pathlib.Path:
    """Returns a model folder with what is in the file, its weights in float32.

    It is kept under `$MAXFDL_CACHE/gguf`, by a hash of the file, and takes 4 bytes for
    each weight.

    Raises:
      UserError: If the file cannot be read, or is of an unknown kind.
    """
    file = fetched(path)
    opened = GgufFile(file)
    name = f"{file.stem}-{_digest(file)}-{_FORMAT}"
    folder = cache_directory() / "gguf" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _write(opened, draft)
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write(file: GgufFile, folder: pathlib.Path) -> None:
    config = config_of(file)
    check_tensors(file, config)
    write_tokenizer(file, folder)
    (folder / "config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )
    dtype = np.dtype(np.float32)
    specs = {name_of(name): (file.shape(name), dtype) for name in file.names()}
    with TensorWriter(folder, specs) as writer:
        for name, values in file.tensors():
            writer.write(name_of(name), values_of(name, values, config))


def _digest(file: pathlib.Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()[:16]
