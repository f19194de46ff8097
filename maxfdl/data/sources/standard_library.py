"""The running Python's own source code: real text that is there without a download."""

import dataclasses
import functools
import os
import pathlib
import platform
import sysconfig
import zlib
from collections.abc import Collection

from maxfdl.data.fingerprint import Fingerprint, Part
from maxfdl.data.sources.source import Source
from maxfdl.errors import UserError

_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class StandardLibrary(Source):
    """The standard library's `.py` files, one document each, sorted by relative path.

    About 30 MB in 1,800 files with CPython's own tests, 12 MB where a distribution
    leaves them out. The text depends on the Python version, so it suits examples
    and smoke tests but not golden losses. The few files that are not UTF-8 (they
    test Python's decoding) read as empty.
    """

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:
        try:
            return self._files[index].read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            return ""
        except OSError as error:
            raise UserError(
                f"StandardLibrary cannot read [{self._files[index]}]"
                f" ({error.strerror}); mend this Python and run the same command"
                " again."
            ) from None

    def fingerprint(self, mended: Collection[int]) -> Fingerprint:
        """Returns the version of Python, and a digest of the sizes of all files."""
        sizes = [file.stat().st_size for file in self._files]
        digest = f"{zlib.crc32(repr(sizes).encode()):08x}"
        version = f"Python {platform.python_version()}"
        return Fingerprint("StandardLibrary", [Part(version, sum(sizes), digest)])

    @functools.cached_property
    def _files(self) -> tuple[pathlib.Path, ...]:
        root = pathlib.Path(sysconfig.get_path("stdlib"))
        files = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in _NOT_THE_LIBRARY]
            files += [os.path.join(folder, name) for name in names]
        files = [file for file in files if file.endswith(".py")]
        if not files:
            raise UserError(
                f"StandardLibrary found no .py file under [{root}]: this Python ships"
                " its library compiled or zipped; use Files(files=...) instead."
            )
        start = len(str(root)) + 1
        files.sort(key=lambda file: file[start:].replace(os.sep, "/"))
        return tuple(map(pathlib.Path, files))
