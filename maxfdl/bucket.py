"""Paths in a bucket of an object store: `gs://bucket/name`, `s3://bucket/name`.

An object store has no folders, locks or renames, and nothing can be appended to an
object. It has objects, each of which is replaced as a whole: a reader finds the old one
or the new one. A folder is what the names of several objects begin with; it exists as
long as there is one of them.
"""

import contextlib
import errno
import functools
import glob
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from maxfdl.errors import UserError

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
"""Scheme to the package that speaks to such a store."""

_FOREIGN = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Packages whose exceptions are failures of the store, and not bugs of a caller."""

_DENIED = ("403", "401", "forbidden", "accessdenied", "access denied", "permission")
_NO_CREDENTIALS = ("credentials", "anonymous caller")


class Status(NamedTuple):
    """Of an object: its size in bytes, and when it was written (seconds since 1970)."""

    st_size: int
    st_mtime: float


class BucketPath(pathlib.PurePosixPath):
    """A path in a bucket, with those methods of `pathlib.Path` that make sense there.

    What fails raises an OSError with `strerror` and `filename`, as for a local path,
    whatever the store's own client raised.
    """

    __slots__ = ()

    def __str__(self) -> str:
        name = super().__str__()  # with one slash instead of two
        scheme, mark, rest = name.partition(":/")
        return f"{scheme}://{rest}" if mark and scheme in PACKAGES else name

    def __fspath__(self) -> str:
        return str(self)

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        return self.parts[1]

    @property
    def key(self) -> str:
        """The name of the object in its bucket."""
        return "/".join(self.parts[2:])

    def absolute(self) -> Self:
        return self

    def expanduser(self) -> Self:
        return self

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def stat(self) -> Status:
        with _as_os_error(self):
            info = _file_system(self.scheme).info(self._address)
            time = info.get("mtime") or info.get("LastModified")
            return Status(info["size"], time.timestamp() if time else 0.0)

    def iterdir(self) -> Iterator[Self]:
        with _as_os_error(self):
            found = _file_system(self.scheme).ls(self._address, detail=False)
        for name in found:
            if name.rstrip("/") != self._address:  # a marker of an empty folder
                yield self / name.rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator[Self]:
        here = glob.escape(self._address)
        with _as_os_error(self):
            found = _file_system(self.scheme).glob(f"{here}/{pattern}")
        for name in found:
            yield self._at(name)

    def files(self) -> list[Self]:
        """Returns every object of this folder and of those in it."""
        with _as_os_error(self):
            return [
                self._at(name) for name in _file_system(self.scheme).find(self._address)
            ]

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: the first object in a folder makes it."""

    def read_bytes(self) -> bytes:
        with _as_os_error(self):
            return _file_system(self.scheme).cat_file(self._address)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> int:
        with _as_os_error(self, writing=True):
            _file_system(self.scheme).pipe_file(self._address, data)
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    def open(self, mode: str = "rb") -> Any:
        """Opens an object for reading; every read fetches a block of it."""
        assert mode == "rb"
        with _as_os_error(self):
            return _file_system(self.scheme).open(self._address, mode)

    def download(self, target: pathlib.Path) -> None:
        """Copies an object to a file, which takes its place when it is whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        status = self.stat()
        handle, draft = tempfile.mkstemp(dir=target.parent)
        os.close(handle)
        try:
            with _as_os_error(self):
                _file_system(self.scheme).get_file(self._address, draft)
            os.utime(draft, (status.st_mtime, status.st_mtime))
            os.replace(draft, target)
        except BaseException:
            os.unlink(draft)
            raise

    def upload(self, source: pathlib.Path) -> None:
        """Copies a file to this object."""
        with _as_os_error(self, writing=True):
            _file_system(self.scheme).put_file(str(source), self._address)

    def rename(self, target: Self) -> Self:
        """Copies an object, or all of a folder, and then removes it."""
        for each in [self] if self.is_file() else self.files():
            place = target / each.relative_to(self)
            with _as_os_error(each, writing=True):
                _file_system(self.scheme).cp_file(each._address, place._address)
        self.rmtree()
        return target

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with _as_os_error(self):
                _file_system(self.scheme).rm_file(self._address)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmtree(self) -> None:
        """Removes a folder; does nothing if there is none."""
        if glob.has_magic(self._address):
            # fsspec would take the name for a pattern, and remove all that fits it.
            for each in self.files():
                each.unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError), _as_os_error(self):
            _file_system(self.scheme).rm(self._address, recursive=True)

    @property
    def _address(self) -> str:
        """What fsspec calls this path."""
        return "/".join(self.parts[1:])

    def _at(self, address: str) -> Self:
        return type(self)(f"{self.scheme}://{address}")

    def _kind(self) -> str | None:
        try:
            with _as_os_error(self):
                return _file_system(self.scheme).info(self._address)["type"]
        except FileNotFoundError:
            return None


@functools.cache
def _file_system(scheme: str) -> Any:
    """Returns the client of a store.

    Raises:
      UserError: If its package is missing.
    """
    package = PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{scheme}:// needs the package {package}: pip install 'maxfdl[cloud]'."
        )
    import fsspec  # comes with it
    from fsspec.config import conf

    # TensorStore writes objects behind the back of this client and of Orbax's: neither
    # may remember what a folder held.
    for name in ("gs", "gcs", "s3"):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def _as_os_error(path: BucketPath, writing: bool = False) -> Iterator[None]:
    """Makes an OSError, as of a local file, of what a store's client raises.

    Args:
      path: What was worked on.
      writing: Then nothing but the bucket itself can be missing.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (_is_foreign(error) or isinstance(error, OSError)):
            raise
        raise _os_error(path, error, writing) from error


def problem_of_store(error: BaseException) -> str | None:
    """Returns what went wrong in a store, if `error` is of a store's client."""
    return _first_line(error) if _is_foreign(error) else None


def _is_foreign(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _FOREIGN


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip()
    return (text.splitlines() or [type(error).__name__])[0][:200]


def _os_error(path: BucketPath, error: Exception, writing: bool) -> OSError:
    first_line = _first_line(error)
    text = f"{type(error).__name__} {first_line}".lower()
    if isinstance(error, FileNotFoundError) and not writing:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if isinstance(error, FileNotFoundError) or "bucket does not exist" in text:
        return OSError(errno.ENXIO, f"there is no bucket {path.bucket}", str(path))
    if any(word in text for word in _NO_CREDENTIALS):
        why = f"no credentials for {path.scheme}://: {first_line}"
        return PermissionError(errno.EACCES, why, str(path))
    if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
        why = f"permission denied for bucket {path.bucket}: {first_line}"
        return PermissionError(errno.EACCES, why, str(path))
    return OSError(errno.EIO, first_line, str(path))
