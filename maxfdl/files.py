"""Files that maxfdl writes for itself."""

import os
import pathlib
import uuid


def cache_directory() -> pathlib.Path:
    """Returns where things that can be made again are kept: `$MAXFDL_CACHE`, or
    `~/.cache/maxfdl`."""
    folder = os.environ.get("MAXFDL_CACHE") or "~/.cache/maxfdl"
    return pathlib.Path(folder).expanduser()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces the file: a reader, or a crash, meets the old text or the new one.

    So does a second writer, for each writes a draft of its own.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(draft, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
