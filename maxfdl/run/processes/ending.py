"""How the processes of a run end together."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence

from absl import flags

from maxfdl.errors import UserError
from maxfdl.run.leave import leave_now, say_error
from maxfdl.run.processes.peers import Peers
from maxfdl.run.processes.place import read_place

# When another process dies, operations that wait for it may fail here before the news
# of its death comes.
_NEWS_SECONDS = 2.0

_peers: Peers | None = None
_has_finished = False


def current() -> Peers | None:
    """Returns the other processes of this run, or None if this one trains alone."""
    return _peers


@contextlib.contextmanager
def together(argv: Sequence[str]) -> Iterator[None]:
    """Joins the other processes of the run, if there are any; if this one ends early,
    it takes them with it.

    Only commands that have the flags of `place` run as several processes.

    Raises:
      UserError: If it cannot be told which of the processes this is.
    """
    global _peers
    place = None
    if "coordinator" in flags.FLAGS:
        place = read_place(argv, os.environ)
    if place is None:
        yield
        return
    _peers = Peers(place, say=say_error, leave=leave_now)
    try:
        yield
    except BaseException as error:
        if not _has_finished:
            _end_by(_peers, error)
        raise


@contextlib.contextmanager
def failing_once() -> Iterator[None]:
    """Sees that this process tells of one failure: its own, or that of another process.

    Where its own may follow from the end of another process, it waits for the news of
    that, and then ends with those before anything else is said.
    """
    try:
        yield
    except Exception as error:
        is_plain = isinstance(error, UserError) and error.__cause__ is None
        if _peers is not None:
            if not is_plain:
                time.sleep(_NEWS_SECONDS)
            while not _peers.settle():
                time.sleep(_NEWS_SECONDS)  # the thread of `peers` ends this process
        raise


def finish() -> None:
    """Ends in good order, once the others have come to their end as well."""
    global _has_finished
    if _peers is None:
        return
    _peers.meet("finished")
    import jax

    jax.distributed.shutdown()
    _peers.finish()
    _has_finished = True


def _end_by(peers: Peers, error: BaseException) -> None:
    """Ends this process by `error`, and tells the others."""
    if not isinstance(error, SystemExit):
        gist = f"{type(error).__name__}: {error}".splitlines()[0]
        sys.excepthook(type(error), error, error.__traceback__)
        text, code = f"{peers.name} failed: {gist}", 1
    elif isinstance(error.__cause__, UserError):
        text, code = f"{peers.name} was refused: {error.__cause__}", 2
    else:
        code = error.code if isinstance(error.code, int) else 0
        text = f"{peers.name} ended before the others, with exit code {code}"
    peers.end(text, code or 1)
    leave_now(code)
