"""A source that skips bad documents."""

from typing import Any

from maxfdl.data.bad_documents import BadDocumentError, BadDocuments
from maxfdl.data.sources.source import Source


class ReadableSource(Source):
    """A source whose bad documents read as empty ones, up to a limit."""

    def __init__(self, source: Any, bad: BadDocuments):
        self._source = source
        self._bad = bad

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> str:
        try:
            return self._source[index]
        except BadDocumentError as error:
            self._bad.meet(index, error)
            return ""
