"""What transformers does with tokenizer files; `make.py` wrote it."""

import functools
import json
import pathlib
from typing import Any

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def write(folder: pathlib.Path, base: str, patch: dict, files: dict) -> pathlib.Path:
    """Writes a base, changed by a patch, and files beside it; returns tokenizer.json.

    A file is text, or JSON.
    """
    content = merged(read("tokenizers.json")["bases"][base], patch)
    for name, each in {"tokenizer.json": content, **files}.items():
        text = each if isinstance(each, str) else json.dumps(each)
        (folder / name).write_text(text, "utf-8")
    return folder / "tokenizer.json"


def merged(content: Any, patch: Any) -> Any:
    """Applies a JSON merge patch (RFC 7396), except that null stays null."""
    if not (isinstance(content, dict) and isinstance(patch, dict)):
        return patch
    changed = {key: merged(content.get(key), value) for key, value in patch.items()}
    return {**content, **changed}
