"""What llama.cpp does with the tokenizers of GGUF files; `make.py` wrote it."""

import functools
import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def read() -> Any:
    return json.loads((FOLDER / "tokenizers.json").read_text("utf-8"))


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns other settings: None takes one away, short names are the tokenizer's."""
    named = {
        name if "." in name else f"tokenizer.ggml.{name}": value
        for name, value in changes.items()
    }
    both = {**settings, **named}
    return {name: value for name, value in both.items() if value is not None}


def write(path: pathlib.Path, settings: dict[str, Any]) -> pathlib.Path:
    """Writes a GGUF file that holds settings and no tensor.

    Whole numbers are unsigned, but for types of tokens, and floats have 32 bits.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for name, value in settings.items():
        add[type(value)](name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
