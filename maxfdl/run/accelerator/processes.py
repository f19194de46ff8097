"""Running checks one after the other: here, or in processes that may crash or hang."""

import contextlib
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from maxfdl.run.accelerator.check import Bench, Check, Outcome

Runner = Callable[[Sequence[Check], Bench], Iterator[Outcome]]


def in_this_process(checks: Sequence[Check], bench: Bench) -> Iterator[Outcome]:
    """Yields the outcome of each check; one that crashes ends this process."""
    for check in checks:
        yield check.guarded(bench)


def in_children(checks: Sequence[Check], bench: Bench) -> Iterator[Outcome]:
    """Yields the outcome of each check, run in a child process.

    A child takes checks one after the other. If one fails, crashes or hangs, a new
    child goes on with those after it. This process must not use the device, whose
    memory belongs to one process at a time.
    """
    waiting = list(checks)
    while waiting:
        if waiting[0].is_late(bench):  # do not start a process to find that out
            yield waiting.pop(0).guarded(bench)
            continue
        together = _together(waiting)
        with _Child(together, bench) as child:
            while together and child.is_running:
                yield child.outcome(together.pop(0))
                waiting.pop(0)


def _together(waiting: list[Check]) -> list[Check]:
    """Returns the checks at the front that one process can run."""
    alone = [i for i, check in enumerate(waiting) if check.is_alone]
    end = alone[0] if alone else len(waiting)
    return waiting[: max(end, 1)]


class _Child(contextlib.AbstractContextManager):
    """A process that runs checks in order and sends each outcome."""

    def __init__(self, checks: list[Check], bench: Bench):
        # A fork would take over threads of this process, and locks that they hold.
        context = multiprocessing.get_context("spawn")
        self._log = tempfile.NamedTemporaryFile(prefix="maxfdl-accelerator-")
        self._outcomes, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_work, args=(checks, bench, theirs, self._log.name), daemon=True
        )
        self._end = bench.end
        with _environment(checks[0].environment):
            self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        self.is_running = True

    def outcome(self, check: Check) -> Outcome:
        """Waits for the outcome of `check`, which the process is at."""
        started = time.monotonic()
        left = max(self._end - started, 0.0)
        try:
            if self._outcomes.poll(min(check.seconds, left)):
                outcome = self._outcomes.recv()
                # An error of CUDA stays: all that this process did later would fail.
                self.is_running = outcome.status != "failed"
                return outcome
        except EOFError:
            self._process.join()
            found = Outcome(
                check.if_killed,
                f"its process {_how_it_ended(self._process.exitcode)}; the last line"
                f" there: {self._last_line()}",
            )
        else:
            found = Outcome("skipped", "all the time was up while it ran")
            if check.seconds < left:
                found = Outcome("failed", f"was not done in {check.seconds:g} s")
        self.is_running = False
        return check.named(found, time.monotonic() - started)

    def __exit__(self, *error: Any) -> None:
        self._process.kill()
        self._process.join()
        self._outcomes.close()
        self._log.close()

    def _last_line(self) -> str:
        text = pathlib.Path(self._log.name).read_text("utf-8", errors="replace")
        return (text.strip().splitlines() or ["none"])[-1]


def _work(checks: list[Check], bench: Bench, outcomes: Connection, log: str) -> None:
    """Runs checks in the child. What libraries print goes to the log."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    del sys.argv[1:]  # tokamax looks for flags of its own there
    for check in checks:
        outcome = check.guarded(bench)
        bench.earlier[check.name] = outcome
        outcomes.send(outcome)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process while a child starts, which inherits them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _how_it_ended(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with code {exitcode}"
