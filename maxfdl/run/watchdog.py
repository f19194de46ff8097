"""Notices a step that hangs, says where, and ends the process."""

import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from maxfdl.run.leave import leave_now, say_error


class Watchdog:
    """Ends the process when a step takes too long.

    After `seconds` in one step it prints the stacks of all threads on stderr, after
    twice that it ends the process with exit code 1. Only what runs inside `step`
    counts, so compiling, evaluating and saving may take as long as they like. Time in
    which the process itself did not run, as after SIGSTOP or on a laptop that slept,
    does not count either.

    Args:
      seconds: How long a step may take; None watches nothing.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._step: int | None = None
        self._spent = 0.0
        self._has_told = False
        self._closed = threading.Event()
        if seconds is not None:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Watches the body, which is a part of `step`."""
        self._spent, self._has_told, self._step = 0.0, False, step
        try:
            yield
        finally:
            self._step = None

    @property
    def is_watching(self) -> bool:
        """Whether the time that passes now counts."""
        return self._step is not None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        assert self._seconds is not None
        interval = min(self._seconds / 10, 1.0)
        last = time.monotonic()
        while not self._closed.wait(interval):
            now = time.monotonic()
            passed, last = min(now - last, 2 * interval), now
            step = self._step
            if step is None:
                continue
            self._spent += passed
            if self._spent >= 2 * self._seconds:
                say_error(
                    f"error: step {step} has taken more than {2 * self._seconds:g} s"
                    " and is taken to hang: the process ends. The same command goes on"
                    " from the newest checkpoint; hang_seconds sets the limit, None"
                    " lifts it."
                )
                leave_now(1)
            elif self._spent >= self._seconds and not self._has_told:
                self._has_told = True
                say_error(
                    f"step {step} has taken more than {self._seconds:g} s; if it takes"
                    " as long again, the process ends. The stacks of its threads:"
                )
                say_error(stacks())


def stacks() -> str:
    """Returns the stack of every thread of this process, the main thread first."""
    frames = sys._current_frames()
    main = threading.main_thread()
    threads = sorted(threading.enumerate(), key=lambda thread: thread is not main)
    return "\n".join(
        f"thread {thread.name}:\n"
        + "".join(traceback.format_stack(frames[thread.ident])).rstrip()
        for thread in threads
        if thread.ident in frames
    )
