"""Stopping a run between two steps when somebody asks for it."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """While entered, turns the first SIGINT or SIGTERM into a question to ask.

    A second Ctrl-C interrupts at once. A second SIGTERM changes nothing, for some
    schedulers send it twice. Python lets only the main thread handle signals: in any
    other thread this does nothing.

    Of several processes that train together, a signal to any one stops all after the
    same step: JAX's preemption service, which then keeps SIGTERM to itself, agrees on
    the step within a second or two.

    ```
    with StopRequest() as stop:
        for step in steps:
            train(step)
            if stop.reached(step):
                break
    ```

    Attributes:
      requested: "SIGINT" or "SIGTERM" once there was one, else None.
    """

    def __init__(self):
        self.requested: str | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def reached(self, step: int) -> bool:
        """Returns whether to stop after `step`; ask after every step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.requested = self.requested or "SIGTERM"
                return True
            return False
        return self.requested is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            alone = jax.process_count() == 1
            for number in _SIGNALS if alone else (signal.SIGINT,):
                self._old_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in _SIGNALS:
            self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = signal.Signals(number).name
        if number == signal.SIGINT:
            self._restore(signal.SIGINT)
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # the one signal JAX passes on

    def _restore(self, number: signal.Signals) -> None:
        if number in self._old_handlers:
            handler = self._old_handlers.pop(number)
            # None is a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
