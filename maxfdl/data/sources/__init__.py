"""Sources of text: sequences of documents that are read when they are asked for."""

from typing import Protocol

from maxfdl.data.sources.files import Files
from maxfdl.data.sources.king_james import KingJames
from maxfdl.data.sources.standard_library import StandardLibrary

__all__ = ["Files", "KingJames", "Source", "StandardLibrary"]


class Source(Protocol):
    """A sequence of documents with random access, safe to read from any thread.

    An empty string says that there is nothing to learn from at that index; readers
    skip it. The order is fixed: document `i` is the same text in every process.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...
