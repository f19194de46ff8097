"""One .txt file, cut into documents without reading it through first."""

import codecs
import functools
import re
from collections.abc import Collection, Sequence

from maxfdl.data.bad_documents import BadDocumentError
from maxfdl.data.sources.document_file import DocumentFile
from maxfdl.data.sources.input_file import InputFile, Span
from maxfdl.errors import UserError

_LONGEST_CHARACTER = 4


class TextFile(DocumentFile):
    """The documents of a text file: a cut falls near every multiple of `split_bytes`.

    Cut `i` is the end of the first blank line after byte `i * split_bytes`, else of
    the first line, else the first character, so it is found by looking at that place
    alone: opening a file of any size costs nothing. A file that is no larger than
    `split_bytes` is one document. The documents in a row are the whole file, without
    the byte order mark that it may begin with; one of them may be empty.
    """

    def __init__(self, file: InputFile, split_bytes: int):
        super().__init__(file)
        if split_bytes < _LONGEST_CHARACTER:
            raise UserError(
                f"Files.split_bytes [{split_bytes}] must be at least"
                f" {_LONGEST_CHARACTER}, the bytes of a long character; leave it out"
                " for the default of 65536."
            )
        self.split_bytes = split_bytes

    def __len__(self) -> int:
        return -(-self.file.size // self.split_bytes)

    def __getitem__(self, index: int) -> str:
        start, stop = self._cut(index), self._cut(index + 1)
        data = self.file.read(start, stop)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            whose = "" if len(self) == 1 else ", for a new run"
            raise BadDocumentError(
                f"Files.files [{self.file}] must be UTF-8, but byte"
                f" {start + error.start} is 0x{data[error.start]:02x}",
                f"convert the file, for example with iconv{whose}",
            ) from None

    def spans_without(self, mended: Collection[int]) -> Sequence[Span]:
        # Where there are several documents, a new length of one would move all cuts.
        is_all = len(self) == 1 and 0 in mended
        return [] if is_all else super().spans_without(mended)

    @functools.cached_property
    def _start(self) -> int:
        """Where the text begins: behind the byte order mark, if there is one."""
        mark = codecs.BOM_UTF8
        return len(mark) if self.file.read(0, len(mark)) == mark else 0

    def _cut(self, index: int) -> int:
        near = index * self.split_bytes
        if near == 0:
            return self._start
        if near >= self.file.size:
            return self.file.size
        around = self.file.read(near, near + self.split_bytes)
        for boundary in (rb"\n[ \t\r]*\n", rb"\n", rb"(?=[^\x80-\xbf])"):
            if found := re.search(boundary, around):
                return near + found.end()
        return near + len(around)
