"""Batches that are read some steps ahead, for several processes to stop together."""

import collections
from collections.abc import Callable
from typing import Any

Batch = dict[str, Any]

_AHEAD = 6
"""Steps. The processes agree to stop at most three steps after the one that asks."""


class LookAhead:
    """Gives the batches of another iterator, and learns of a failure before its turn.

    Several processes save together or not at all, and a process that has no batch for
    a step leaves the others waiting in it. So one that fails to read a batch asks all
    to stop while it still has batches for the steps that they have begun.

    Args:
      batches: Has `get_state`, `set_state`, `skip_bad` and `bad_documents`.
      count: How many batches will be asked for.
      on_failure: Told once what happened, from within `next`. After the batches that
        are read already, `next` raises the same.
    """

    def __init__(
        self, batches: Any, count: int, on_failure: Callable[[Exception], None]
    ):
        self._failure: Exception | None = None
        self._batches = batches
        self._left = count
        self._on_failure = on_failure
        self._ready: collections.deque[tuple[Batch, Any, list[int]]]
        self._ready = collections.deque()
        self._now = batches.get_state(), batches.bad_documents

    def __next__(self) -> Batch:
        while len(self._ready) < min(_AHEAD, self._left) and self._failure is None:
            self._read()
        if not self._ready:
            assert self._failure is not None
            raise self._failure
        batch, *self._now = self._ready.popleft()
        self._left -= 1
        return batch

    def expect(self, more: int) -> None:
        """Says that so many more batches will be asked for."""
        self._left += more

    def _read(self) -> None:
        try:
            batch = next(self._batches)
        except Exception as error:
            self._failure = error
            self._on_failure(error)
        else:
            place = self._batches.get_state(), self._batches.bad_documents
            self._ready.append((batch, *place))

    def get_state(self) -> Any:
        """Returns the place after the last batch that was given."""
        return self._now[0]

    @property
    def bad_documents(self) -> list[int]:
        return self._now[1]

    @property
    def skip_bad(self) -> int:
        return self._batches.skip_bad
