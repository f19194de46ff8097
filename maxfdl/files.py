"""Files that maxfdl writes for itself, on disk or in a bucket."""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError

UPLOAD_SECONDS = 10.0
"""Least time between two uploads of an object that grows."""


def cache_directory() -> pathlib.Path:
    """Returns where things that can be made again are kept: `$MAXFDL_CACHE`, or
    `~/.cache/maxfdl`.

    Raises:
      UserError: If that is not a folder of this machine.
    """
    folder = os.environ.get("MAXFDL_CACHE") or "~/.cache/maxfdl"
    if "://" in folder:
        raise UserError(
            f"MAXFDL_CACHE ({folder}) must be a folder on a disk of this machine."
        )
    return on_this_machine(folder)


def on_this_machine(name: str) -> pathlib.Path:
    """Returns a path; `~` and `~user` are home directories.

    Raises:
      UserError: If there is no such user.
    """
    try:
        return pathlib.Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"Path {name} begins with a home directory that is not known here"
            f" ({error}); give its full path."
        ) from None


class Growing(Protocol):
    """What grows by whole records."""

    def append(self, record: bytes) -> None: ...

    def close(self) -> None: ...


def growing(path: pathlib.Path | BucketPath) -> Growing:
    """Opens a file, or an object of a bucket, to append records to it."""
    return GrowingObject(path) if isinstance(path, BucketPath) else GrowingFile(path)


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


class GrowingObject:
    """An object that grows by whole records, though a store can only replace it.

    It is uploaded whole, in the background, at most every `UPLOAD_SECONDS` and when it
    is closed: a process that is killed loses the records since the last upload.
    """

    def __init__(self, path: BucketPath):
        self._path = path
        self._content = path.read_bytes() if path.exists() else b""
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._upload: concurrent.futures.Future | None = None
        self._due = time.monotonic()

    def append(self, record: bytes) -> None:
        """Raises the OSError of the last upload, if that has failed."""
        self._content += record
        if self._upload is not None and self._upload.done():
            self._upload.result()
            self._upload = None
        if self._upload is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + UPLOAD_SECONDS
            self._upload = self._executor.submit(self._path.write_bytes, self._content)

    def close(self) -> None:
        self._executor.shutdown()  # an older upload must not come after this one
        self._path.write_bytes(self._content)


def write_atomically(path: pathlib.Path | BucketPath, text: str) -> None:
    """Replaces the text of a file or an object, see `file_replaced`."""
    if isinstance(path, BucketPath):
        path.write_text(text, "utf-8")
        return
    with file_replaced(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def file_replaced(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Yields a new file, which takes the place of `path` when the block ends.

    A reader, or a crash, meets the old file or the new one, whole. So does a second
    writer, for each writes a draft of its own. If the block raises, `path` stays as it
    was.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(draft, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_replaced(path: pathlib.Path | BucketPath) -> Iterator[pathlib.Path]:
    """Yields an empty folder, which takes the place of `path` when the block ends.

    If the block raises, `path` stays as it was.
    """
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as made:
            yield pathlib.Path(made)
            path.rmtree()
            upload_folder(pathlib.Path(made), path)
        return
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


def upload_folder(folder: pathlib.Path, target: BucketPath, last: str = "") -> None:
    """Copies the files of a folder into a bucket; the one called `last` comes last."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path == folder / last, path)):
        (target / path.relative_to(folder).as_posix()).upload(path)
