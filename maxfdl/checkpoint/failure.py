"""Orbax, and what it raises, in words for a user."""

import os
import re

from maxfdl.bucket import problem_of_store
from maxfdl.errors import UserError

# Messages of the C++ library below Orbax: "RESOURCE_EXHAUSTED: Failed writing: ...
# [os_error_code='28']".
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class SaveError(UserError):
    """A state that cannot be saved."""


def storage_problem(error: BaseException) -> str | None:
    """Returns why files cannot be written, or None if `error` is of another kind."""
    cause = _first_cause(error)
    if (problem := problem_of_store(cause)) is not None:
        return problem
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if code := _OS_ERROR.search(str(cause)):
        return os.strerror(int(code[1]))
    return gist(cause) if _STATUS.match(str(cause)) else None


def gist(error: BaseException) -> str:
    """Returns one short line of `error`; those of Orbax wrap others and fill pages."""
    cause = _first_cause(error)
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0][:200]}".rstrip(".: ")


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
