"""Documents that cannot be read, and how many of them a stream skips."""

import sys
from collections.abc import Iterable

from maxfdl.errors import UserError


class BadDocumentError(UserError):
    """A document that cannot be read, while others of its file can.

    Args:
      problem: Where the document is, what it must be, and what it is.
      remedy: What to do about it, as a command: `correct that line`.
      hint: A last sentence, with a space in front.
    """

    def __init__(self, problem: str, remedy: str, hint: str = ""):
        super().__init__(f"{problem}; {remedy}.{hint}")
        self.problem = problem
        self.remedy = remedy
        self.hint = hint


class BadDocuments:
    """Bad documents of one stream, which skips up to `limit` of them.

    A stream reads documents in a fixed order, so which bad document exceeds the limit
    does not depend on threads, or on where the stream was resumed. A document counts
    once.
    """

    def __init__(self, limit: int = 0):
        self.limit = limit
        self._met: dict[int, None] = {}
        self._last: int | None = None

    @property
    def met(self) -> list[int]:
        """The documents that were skipped, in order."""
        return list(self._met)

    @property
    def known(self) -> set[int]:
        """The documents in `met`, and the one that exceeded the limit, if one did."""
        return {*self.met, *([] if self._last is None else [self._last])}

    def restart(self, met: Iterable[int]) -> None:
        """Continues as if exactly these had been read."""
        self._met, self._last = dict.fromkeys(met), None

    def meet(self, index: int, error: BadDocumentError) -> None:
        """Counts a document; reports it on stderr the first time.

        Raises:
          UserError: If `limit` others came before.
        """
        if index in self._met:
            return
        number = len(self._met) + 1
        if number > self.limit:
            self._last = index
            raise UserError(_too_many(number, self.limit, error))
        self._met[index] = None
        print(
            f"skipped bad document {number} of at most {self.limit}: {error.problem}",
            file=sys.stderr,
            flush=True,
        )


def _too_many(number: int, limit: int, error: BadDocumentError) -> str:
    counted = ""
    if limit:
        counted = f"; data.skip_bad [{limit}] lets {limit} pass, and this is one more"
    return (
        f"{error.problem}{counted}; {error.remedy}, or go on without it by"
        f" data.skip_bad={number}.{error.hint}"
    )
