"""Files that maxfdl writes for itself."""

import contextlib
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator


def cache_directory() -> pathlib.Path:
    """Returns where things that can be made again are kept: `$MAXFDL_CACHE`, or
    `~/.cache/maxfdl`."""
    folder = os.environ.get("MAXFDL_CACHE") or "~/.cache/maxfdl"
    return pathlib.Path(folder).expanduser()


class GrowingFile:
    """A file that grows by whole records, each written at once.

    Of a record that does not fit on the disk nothing stays.
    """

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "ab", buffering=0)

    def append(self, record: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        left = memoryview(record)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def close(self) -> None:
        self._file.close()


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


@contextlib.contextmanager
def folder_replaced(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder, which takes the place of `path` when the block ends.

    If the block raises, `path` stays as it was.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    old = draft.with_name(f"{draft.name}.old")
    draft.mkdir()
    try:
        yield draft
        if path.exists():
            path.rename(old)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
