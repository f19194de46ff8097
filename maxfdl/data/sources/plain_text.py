"""One .txt file, cut into documents without reading it through first."""

import functools
import pathlib
import re

from maxfdl.errors import UserError

_LONGEST_CHARACTER = 4


class TextFile:
    """The documents of a text file: a cut falls near every multiple of `split_bytes`.

    Cut `i` is the end of the first blank line after byte `i * split_bytes`, else of
    the first line, else the first character, so it is found by looking at that place
    alone: opening a file of any size costs nothing. A file that is no larger than
    `split_bytes` is one document. The documents in a row are the whole file; one of
    them may be empty.
    """

    def __init__(self, path: pathlib.Path, split_bytes: int):
        if split_bytes < _LONGEST_CHARACTER:
            raise UserError(
                f"Files.split_bytes [{split_bytes}] must be at least"
                f" {_LONGEST_CHARACTER}, the bytes of a long character; leave it out"
                " for the default of 65536."
            )
        self.path = path
        self.split_bytes = split_bytes

    def __len__(self) -> int:
        return -(-self._size // self.split_bytes)

    def __getitem__(self, index: int) -> str:
        start, stop = self._cut(index), self._cut(index + 1)
        data = self._read(start, stop)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"Files.files [{self.path}] must be UTF-8, but byte"
                f" {start + error.start} is not; convert the file, for example with"
                " iconv."
            ) from None

    @functools.cached_property
    def _size(self) -> int:
        return self.path.stat().st_size

    def _cut(self, index: int) -> int:
        near = index * self.split_bytes
        if near == 0 or near >= self._size:
            return min(near, self._size)
        around = self._read(near, near + self.split_bytes)
        for boundary in (rb"\n[ \t\r]*\n", rb"\n", rb"(?=[^\x80-\xbf])"):
            if found := re.search(boundary, around):
                return near + found.end()
        return near + len(around)

    def _read(self, start: int, stop: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)
