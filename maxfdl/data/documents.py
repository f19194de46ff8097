"""The endless sequence of tokenised documents that rows are packed from."""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np

# A run is what one task of the pool makes: handing over costs 0.1 ms, as much as
# tokenising a hundred words.
_RUN_TOKENS = 4096
_RUN_DOCUMENTS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """Document `number` is `tokens(order(number))`, for every number from 0.

    Args:
      order: Which document of the source comes at a number.
      tokens: Reads and tokenises a document of the source; called in `pool`.
      patience: After so many empty documents in a row there is no text to find.
      pool: Where to tokenise; None does it when the result is wanted.
    """

    order: Callable[[int], int]
    tokens: Callable[[int], np.ndarray]
    patience: int
    pool: Executor | None = None

    def ask_for(self, first: int, step: int) -> Callable[[], list[np.ndarray]]:
        """Begins to make a run of documents `first`, `first + step`, ...

        Returns what to call for the result: at least one document.
        """
        if self.pool is None:
            return functools.partial(self._run, first, step)
        return self.pool.submit(self._run, first, step).result

    def _run(self, first: int, step: int) -> list[np.ndarray]:
        documents, size = [], 0
        while size < _RUN_TOKENS and len(documents) < _RUN_DOCUMENTS:
            documents.append(self.tokens(self.order(first + len(documents) * step)))
            size += len(documents[-1])
        return documents
