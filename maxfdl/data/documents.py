"""The endless sequence of tokenized documents that rows are packed from."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

from maxfdl.data.bad_documents import BadDocumentError, BadDocuments

# A run is what one task of the pool makes: handing over costs 0.1 ms, as much as
# tokenising a hundred words.
_RUN_TOKENS = 4096
_RUN_DOCUMENTS = 64

_EMPTY = np.zeros(0, np.int32)

Document = np.ndarray | BadDocumentError
"""The tokens of a document, or why it cannot be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """Document `number` is `tokens(order(number))`, for every number from 0.

    Args:
      order: Returns the index in the source of the document at a number.
      tokens: Reads and tokenizes a document of the source; called in `pool`.
      patience: Empty documents in a row after which the source counts as empty.
      bad: Counts documents that cannot be read; they count as empty.
      pool: Threads that tokenize; None does it when the result is needed.
    """

    order: Callable[[int], int]
    tokens: Callable[[int], np.ndarray]
    patience: int
    bad: BadDocuments = dataclasses.field(default_factory=BadDocuments)
    pool: Executor | None = None

    def ask_for(self, first: int, step: int) -> Callable[[], list[Document]]:
        """Starts to tokenize a run of documents `first`, `first + step`, ...

        Returns a function that returns the run: at least one document. `readable`
        decides later, in order, whether a document that cannot be read ends the stream.
        """
        if self.pool is None:
            return functools.partial(self._run, first, step)
        return self.pool.submit(self._run, first, step).result

    def readable(self, number: int, document: Document) -> np.ndarray:
        """Returns the tokens of a document; none if it is bad and is skipped.

        Raises:
          UserError: If it is bad and exceeds the limit.
        """
        if isinstance(document, BadDocumentError):
            self.bad.meet(self.order(number), document)
            return _EMPTY
        return document

    def _run(self, first: int, step: int) -> list[Document]:
        documents, size = [], 0
        while size < _RUN_TOKENS and len(documents) < _RUN_DOCUMENTS:
            try:
                tokens = self.tokens(self.order(first + len(documents) * step))
                size += len(tokens)
                documents.append(tokens)
            except BadDocumentError as error:
                documents.append(error)
        return documents
