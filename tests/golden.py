"""Texts that are kept under `tests/goldens`, so that a reviewer sees them change.

`UPDATE_GOLDENS=1 python -m pytest tests` writes them anew.
"""

import os
import pathlib

FOLDER = pathlib.Path(__file__).parent / "goldens"


def check(name: str, text: str) -> None:
    """Asserts that `text` is what the golden file `name` holds, or writes it there."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDENS") == "1":
        FOLDER.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.exists(), f"{path} is missing; UPDATE_GOLDENS=1 writes it."
    assert text == path.read_text(), f"{path} differs; UPDATE_GOLDENS=1 writes it anew."
