"""Last words, and ending the process, from any of its threads."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

BACKGROUND = "maxfdl-background"
"""How the names of threads begin that nobody waits for at the end of the process."""


def say_error(line: str) -> None:
    """Prints a line on standard error, if there is still somebody to read it."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def leave_now(code: int) -> None:
    """Ends the process at once, whatever its threads are doing.

    The main thread may be inside XLA, which compiles for minutes and waits for other
    processes for ever, and would run no Python meanwhile. Nothing that waits for other
    threads or processes at the end of a program (`atexit`) is run.
    """
    # In a thread of its own: another may hold a stream that nobody reads from.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(1)
    os._exit(code)


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Ends the process at once when the body raises SystemExit, with its exit code, if
    background threads are still at work: XLA may compile for minutes what a run that
    was refused never needs."""
    try:
        yield
    except SystemExit as end:
        if any(t.name.startswith(BACKGROUND) for t in threading.enumerate()):
            leave_now(end.code if isinstance(end.code, int) else int(bool(end.code)))
        raise


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
