"""The interface of sources of text."""

import abc


class Source(abc.ABC):
    """A sequence of documents with random access, safe to read from any thread.

    An empty string says that there is nothing to learn from at that index; readers
    skip it. The order is fixed: document `i` is the same text in every process.
    """

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> str: ...
