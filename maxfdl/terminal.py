"""How a command talks to its terminal, and how it ends.

Exit codes of every command: 0 it did what was asked; 1 a bug, with its traceback; 2 the
user can mend it, told in one line `error: ...`; 130 Ctrl-C; 141 its reader has gone, as
in `maxfdl show --models | head`. The last two are what a shell reports of a program
that the signals SIGINT and SIGPIPE ended. SIGPIPE itself stays ignored, as Python has
it, so that a training run saves before it ends.
"""

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from maxfdl.errors import UserError

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Runs the body as a command: what is no bug ends it without a traceback.

    Characters that the terminal's encoding lacks are printed as `\\xe4`.
    """
    for stream in _streams():
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with _output_may_fail():
        try:
            yield
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(BAD_INPUT) from error
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.exit(INTERRUPTED)


@contextlib.contextmanager
def _output_may_fail() -> Iterator[None]:
    """Ends the command if what it prints has no reader, or the disk has no room."""
    try:
        try:
            yield
        except SystemExit:
            _flush()
            raise
        _flush()
    except OSError as error:
        is_full = error.errno in _NO_SPACE and error.filename is None
        is_pipe = isinstance(error, BrokenPipeError)
        if not is_full and not (is_pipe and any(map(_has_no_reader, _streams()))):
            raise
        if is_full:
            with contextlib.suppress(OSError):
                print(f"error: {error.strerror}.", file=sys.stderr, flush=True)
        _discard_unwritten()
        sys.exit(BAD_INPUT if is_full else READER_GONE)


def _streams() -> list[TextIO]:
    """Standard output and error; a program that is started without has None there."""
    return [stream for stream in (sys.stdout, sys.stderr) if stream is not None]


def _flush() -> None:
    for stream in _streams():
        stream.flush()


def _has_no_reader(stream: TextIO) -> bool:
    """Says whether `stream` is a pipe whose other end is closed."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
    except io.UnsupportedOperation:
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_unwritten() -> None:
    """Sends what is left in buffers nowhere, where the interpreter's last flush fails.

    It would be reported as an ignored exception, and by the exit code 120.
    """
    for stream in _streams():
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: TextIO) -> None:
    """Sends what is in the buffer of a stream, and all that is yet to come, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
