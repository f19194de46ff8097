"""What dependencies print about their own failures, beside raising them."""

import importlib.util
import logging
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

# Orbax logs to absl's logger, and tasks that it abandons to asyncio's.
_LOGGERS = ("absl", "asyncio")

# What CPython calls for a coroutine that ends without having begun. The warning itself
# names no file, so no filter could tell whose it is.
_UNAWAITED = "_warn_unawaited_coroutine"

_places: set[str] = set()
"""How the paths of the packages' code begin."""


def hush(*packages: str) -> None:
    """From now on, failures inside these packages print nothing by themselves.

    This is for packages that print pages about a failure that they also raise: a
    traceback from each thread, logger and abandoned coroutine. Who calls them tells the
    user in a sentence. What they print without a failure, and failures anywhere else,
    still show.
    """
    if not _places:
        _install()
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            folders = spec.submodule_search_locations or ()
            _places.update(f"{folder}/" for folder in folders)
            _places.add(f"{package}/")  # as Cython calls its files


def _install() -> None:
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(lambda record: not _is_failure(record))
    in_thread, unraisable = threading.excepthook, sys.unraisablehook
    unawaited: Any = getattr(warnings, _UNAWAITED)

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if not _passes(args.exc_traceback):
            in_thread(args)

    def unraisablehook(args: Any) -> None:
        if not _passes(args.exc_traceback):
            unraisable(args)

    def warn_unawaited(coroutine: Any) -> None:
        if not _is_theirs(coroutine.cr_code.co_filename):
            unawaited(coroutine)

    threading.excepthook = excepthook
    sys.unraisablehook = unraisablehook
    setattr(warnings, _UNAWAITED, warn_unawaited)


def _is_failure(record: logging.LogRecord) -> bool:
    """Returns whether a record tells of a failure in one of the packages."""
    if _is_theirs(record.pathname):
        return record.levelno >= logging.ERROR
    if record.name == "asyncio":  # the message alone says whose task it is about
        message = record.getMessage()
        return any(place in message for place in _places)
    return bool(record.exc_info and _passes(record.exc_info[2]))


def _passes(trace: TracebackType | None) -> bool:
    """Returns whether a traceback passes through one of the packages."""
    frames = traceback.walk_tb(trace)
    return any(_is_theirs(frame.f_code.co_filename) for frame, _ in frames)


def _is_theirs(path: str) -> bool:
    return path.startswith(tuple(_places))
