"""A file that is read in pieces during a whole run, and must not change meanwhile.

`digest` tells whether it is still the same file, in this run and when the run is
resumed. It is a CRC-32 of samples, against edits made by mistake and not by design.
"""

import contextlib
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from maxfdl import outside
from maxfdl.data.sources.paths import shown
from maxfdl.errors import UserError

Span = tuple[int, int]
"""The bytes from the first number to before the second."""

_NUM_SAMPLES = 8
_READ_BYTES = 1 << 20


class InputFile:
    """One regular file, as it was when this object was made.

    Args:
      path: The file.
      sampled_bytes: A file of up to so many bytes is digested whole; of a larger one
        so many are, in eight blocks at even distances, the first and the last among
        them.

    Raises:
      UserError: If there is no such file, or it cannot be read.
    """

    def __init__(self, path: pathlib.Path, sampled_bytes: int):
        outside.check_file(path)
        self.path = path
        self._sampled_bytes = sampled_bytes
        with self._opened() as file:
            self._seen = _size_and_time(file)
            self.digest = self.digest_of([(0, self.size)], file)

    def __str__(self) -> str:
        """The file's name, for errors."""
        return shown(self.path)

    @property
    def size(self) -> int:
        return self._seen[0]

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens the file for reading.

        Raises:
          UserError: If the file has changed, or cannot be read.
        """
        with self._opened() as file:
            self._refuse_another_file(file)
            yield file

    def read(self, start: int, stop: int) -> bytes:
        """Returns the bytes from `start` to before `stop`; raises as `open`."""
        with self.open() as file:
            return _read(file, (start, stop))

    def digest_of(self, spans: Sequence[Span], file: BinaryIO) -> str:
        """Returns a digest of what stands in `spans`, in order, as one text."""
        size = sum(stop - start for start, stop in spans)
        digest = 0
        for block in _samples(size, self._sampled_bytes):
            for start, stop in _within(spans, block):
                for at in range(start, stop, _READ_BYTES):
                    piece = _read(file, (at, min(at + _READ_BYTES, stop)))
                    digest = zlib.crc32(piece, digest)
        return f"{digest:08x}"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            with self.path.open("rb") as file:
                yield file
        except OSError as error:
            raise UserError(
                f"Files.files [{self}] cannot be read ({error.strerror}); see that it"
                " can, and run the same command again."
            ) from None

    def _refuse_another_file(self, file: BinaryIO) -> None:
        """Raises a UserError unless the file is what it was when first seen.

        A new time of modification alone is no change: jobs touch files to keep them
        from being purged.
        """
        now = _size_and_time(file)
        if now == self._seen:
            return
        if now[0] != self.size or self.digest_of([(0, now[0])], file) != self.digest:
            raise UserError(
                f"Files.files [{self}] has changed while documents were read from it;"
                " put back what it was and run the same command again, or start a new"
                " run."
            )
        self._seen = now


def _size_and_time(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _read(file: BinaryIO, span: Span) -> bytes:
    start, stop = span
    file.seek(start)
    return file.read(stop - start)


def _samples(size: int, most: int) -> list[Span]:
    """Returns the parts of `size` bytes to look at: all of them, or `most` bytes."""
    if size <= most:
        return [(0, size)]
    length = most // _NUM_SAMPLES
    last = size - length
    starts = [last * i // (_NUM_SAMPLES - 1) for i in range(_NUM_SAMPLES)]
    return [(start, start + length) for start in starts]


def _within(spans: Sequence[Span], block: Span) -> Iterator[Span]:
    """Yields where bytes stand that are `block` when all of `spans` are one text."""
    passed = 0
    for start, stop in spans:
        first = max(block[0] - passed, 0)
        last = min(block[1] - passed, stop - start)
        if first < last:
            yield start + first, start + last
        passed += stop - start
