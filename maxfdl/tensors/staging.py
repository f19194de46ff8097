"""Exports a folder atomically: new files are written beside the old, then swapped."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.files import upload_folder
from maxfdl.paths import AnyPath

_WORK = ".maxfdl-export"


@contextlib.contextmanager
def swapped_in(
    folder: AnyPath, owned: Sequence[str], last: str
) -> Iterator[pathlib.Path]:
    """Yields an empty folder; what is put there replaces an older export in `folder`.

    If the block ends without error, the files of the older export are removed and the
    new ones moved in, by renaming alone. If it raises, or if renaming fails, `folder`
    stays as it was. Meanwhile the new files are in a hidden folder inside `folder`,
    since that may be a mount point. The next export removes what a killed process left.

    Where `folder` is in a bucket, the new files are made in a temporary folder of this
    machine and uploaded. Objects cannot be renamed: if an upload fails, the older
    export is gone, and without `last` nobody reads what is there.

    Args:
      folder: Where the export goes; made if it is missing.
      owned: Patterns of the names that files of an export have. Other files stay.
      last: The file without which nobody reads the folder. It is removed first and
        moved in last, so that no reader sees a mixture.

    Raises:
      UserError: If `folder` cannot be written, or another export is writing there.
    """
    if isinstance(folder, BucketPath):
        with _uploaded(folder, owned, last) as new:
            yield new
        return
    with _explain_failure(folder), _made(folder), _work(folder) as work:
        new, old = work / "new", work / "old"
        new.mkdir()
        yield new
        leave = sorted(_files(folder, owned), key=lambda path: path != folder / last)
        come = sorted(_files(new, ["**/*"]), key=lambda path: path == new / last)
        for path in come:
            _flush(path)
        _rename(
            [(path, old / path.relative_to(folder)) for path in leave]
            + [(path, folder / path.relative_to(new)) for path in come]
        )
        _remove_empty({path.parent for path in leave} - {folder})


@contextlib.contextmanager
def _uploaded(
    folder: BucketPath, owned: Sequence[str], last: str
) -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="maxfdl-export-") as made:
        new = pathlib.Path(made)
        yield new
        try:
            (folder / last).unlink(missing_ok=True)
            for old in {path for pattern in owned for path in folder.glob(pattern)}:
                if old.is_file():
                    old.unlink()
            upload_folder(new, folder, last)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}); what is there is no"
                " whole export: run the same command again."
            ) from error


def _files(folder: pathlib.Path, patterns: Sequence[str]) -> set[pathlib.Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return {path for path in found if not path.is_dir()}


def _rename(moves: Sequence[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """Renames all files, or none if one fails; makes folders as needed."""
    made = {target.parent for _, target in moves if not target.parent.exists()}
    try:
        for parent in made:
            parent.mkdir(parents=True, exist_ok=True)
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if not os.path.lexists(source):
                target.rename(source)
        _remove_empty(made)
        raise


def _remove_empty(folders: Iterable[pathlib.Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _explain_failure(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}:"
            f" {error.filename or folder}); it is as it was."
        ) from error


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder; removes it again if the block raises and it is new."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if is_new:
                folder.rmdir()
        raise


@contextlib.contextmanager
def _work(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder inside, locked by this process and removed at the end."""
    work = folder / _WORK
    work.mkdir(exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for leftover in work.iterdir():
            shutil.rmtree(leftover)
        yield work
        shutil.rmtree(work, ignore_errors=True)
    except BlockingIOError:
        raise UserError(
            f"{folder} is being written by another export; wait for that one."
        ) from None
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _flush(path: pathlib.Path) -> None:
    """Waits until a file is on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
