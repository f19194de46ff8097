"""One .jsonl file: a JSON object a line."""

import codecs
import functools
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from maxfdl import outside
from maxfdl.data.bad_documents import BadDocumentError
from maxfdl.data.sources.document_file import DocumentFile, listed
from maxfdl.data.sources.input_file import InputFile, Span
from maxfdl.errors import did_you_mean

_SCANNED_BYTES = 1 << 24
_MEND = "correct that line, or leave it blank"


class JsonLinesFile(DocumentFile):
    """The documents of a JSON Lines file: the string under `field` in each line.

    The first use scans the file once for its line ends (about 1 GB/s) and keeps
    8 bytes for each; a document is then one seek away. Blank lines are empty
    documents. Anything else that is no string, `null` too, makes a bad one.
    """

    def __init__(self, file: InputFile, field: str):
        super().__init__(file)
        self.field = field

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        # A byte order mark is no JSON; files put together have one in the middle.
        line = self.file.read(*self._span(index)).removeprefix(codecs.BOM_UTF8)
        return self._text(line, index + 1) if line.strip() else ""

    def spans_without(self, mended: Collection[int]) -> Sequence[Span]:
        cuts = [self._span(index) for index in sorted(mended)]
        starts = [0, *(stop for _, stop in cuts)]
        stops = [*(start for start, _ in cuts), self.file.size]
        return list(zip(starts, stops, strict=True))

    def _span(self, index: int) -> Span:
        start, stop = map(int, self._ends[index : index + 2])
        return start, stop

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Byte offsets: 0, then the end of every line."""
        ends, size = [np.zeros(1, np.int64)], 0
        with self.file.open() as file:
            while block := file.read(_SCANNED_BYTES):
                newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
                ends.append(newlines + (size + 1))
                size += len(block)
        every = np.concatenate(ends)
        return every if every[-1] == size else np.append(every, size)

    def _text(self, line: bytes, number: int) -> str:
        where = f"Files.files [{self.file}] line {number}"
        try:
            value = _parse(line.decode("utf-8"))
        except ValueError as error:
            raise BadDocumentError(
                f"{where} must be a JSON object in UTF-8, but: {error}", _MEND
            ) from None
        except RecursionError:
            raise BadDocumentError(
                f"{where} must be a JSON object, but is nested too deeply", _MEND
            ) from None
        if not isinstance(value, dict):
            raise BadDocumentError(
                f"{where} must be a JSON object, but is {outside.shown(value)}", _MEND
            )
        if self.field not in value:
            raise BadDocumentError(
                f"{where} must have a string under {self.field!r}, but has"
                f" [{listed(value)}]",
                f"{_MEND}, or set Files.field",
                did_you_mean(self.field, value),
            )
        text = value[self.field]
        if not isinstance(text, str):
            raise BadDocumentError(
                f"{where} must have a string under {self.field!r}, but has"
                f" {outside.shown(text)} there",
                _MEND,
            )
        return text


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer has more digits than Python converts
        return json.loads(text, parse_int=float)
