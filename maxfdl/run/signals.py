"""Stopping a run when somebody asks for it with a signal."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from maxfdl.run.leave import leave_now, say_error
from maxfdl.run.processes.peers import Peers
from maxfdl.run.processes.wire import Message

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """While entered, answers SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    - Before the first step of this start, and after the run is saved, there is nothing
      to save: a signal ends the process at once.
    - In between, the first signal is a request: the loop ends after the step under way,
      and the run is saved. Of several processes, a signal to any one stops all after
      the same step.
    - After a request, Ctrl-C ends the process at once, and what was trained since the
      last save is lost. Another SIGTERM or SIGHUP changes nothing, because schedulers
      and `timeout` send SIGTERM twice.

    The exit code is 128 and the number of the signal: 130 after SIGINT, 143 after
    SIGTERM, 129 after SIGHUP. SIGHUP stays ignored where it was, as under `nohup`. An
    output that nobody reads any more (`launch | head`) counts as a signal: 141.

    A thread takes the signals, for the main thread runs no Python while XLA compiles.
    Each one counts, however soon it comes after another. Python lets only the main
    thread set this up: entered in any other thread, a `StopRequest` does nothing.

    ```
    with StopRequest() as stop, stop.training():
        step = prepare()
        while step < last and not stop.reached(step):
            step += 1
            train(step)
            stop.began()
        save(step)
    sys.exit(stop.exit_code)
    ```

    Args:
      peers: The other processes of the run, if there are any.
      leave: Ends the process with an exit code.

    Attributes:
      requested: Name of the signal that asked for the end of the loop, or what else
        did, else None.
      failure: What this process is to raise when all have stopped and saved.
    """

    def __init__(
        self, peers: Peers | None = None, leave: Callable[[int], Any] = leave_now
    ):
        self.requested: str | None = None
        self.failure: Exception | None = None
        self._peers = peers
        self._leave = leave
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._sender: socket.socket | None = None
        self._num_signals = 0
        self._changed = threading.Condition()
        self._has_begun = self._is_saved = self._has_stopped = False
        self._step = 0  # the last that `reached` was asked about
        self._is_held = False  # while the processes agree on a step
        self._stop_after: int | None = None
        if peers is not None:
            peers.answers |= {"where": self._where, "stop_after": self._agreed}

    @property
    def exit_code(self) -> int:
        """What to exit with after the loop: 0 unless a request has ended it."""
        if not self._has_stopped or self.requested is None:
            return 0
        return _code(self.requested)

    def reached(self, step: int) -> bool:
        """Returns whether to stop after `step`; ask before the first and after each."""
        with self._changed:
            self._step = step
            self._changed.wait_for(lambda: not self._is_held)
            after = self._stop_after
            self._has_stopped = after is not None and step >= after
            return self._has_stopped

    def began(self) -> None:
        """Tells that a step is under way: from now on there is something to save."""
        self._has_begun = True

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Lasts until everything is saved."""
        yield
        self._is_saved = True

    def after_failure(self, error: Exception) -> None:
        """Asks all processes to stop after the same step, for this one has failed.

        Before the first step there is nothing to save, and it may fail at once.
        """
        if self._peers is not None and self._has_begun:
            self.failure = error
            why = f"a failure of process {self._peers.place.process_id}"
            text = f"{self._peers.name} has failed: {error}"
            self._peers.send({"kind": "stop", "signal": why, "text": text, "code": 2})

    def reader_has_gone(self) -> None:
        """Does what a signal does, where nobody reads the output any more."""
        self._on_signal("SIGPIPE")

    def _on_signal(self, name: str) -> None:
        self._num_signals += 1
        if self._num_signals > 1:
            if name == "SIGINT":
                self._end(name, "; what was trained since the last save is lost")
        elif self._peers is not None and self._peers.has_joined:
            text = f"{self._peers.name} was stopped by {name} with nothing to save"
            self._peers.send(
                {"kind": "stop", "signal": name, "text": text, "code": _code(name)}
            )
        elif not self._has_begun or self._is_saved:
            self._end(name, " with nothing to save")
        else:
            with self._changed:
                self._agreed({"signal": name, "step": self._step + 1})

    def _end(self, name: str, what: str) -> None:
        """Ends this process at once, and the others."""
        say_error(f"stopped by {name}{what}")
        if self._peers is not None:
            self._peers.end(
                f"{self._peers.name} was stopped by {name}{what}", _code(name)
            )
        self._leave(_code(name))

    def _where(self, message: Message) -> Message:
        """Tells the last finished step, and stays there until all agree on one."""
        with self._changed:
            self._is_held = self._has_begun
            return {"kind": "at", "step": self._step if self._has_begun else None}

    def _agreed(self, message: Message) -> None:
        with self._changed:
            self.requested, self._stop_after = message["signal"], message["step"]
            self._is_held = False
            self._changed.notify_all()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._set_up()
        return self

    def _set_up(self) -> None:
        receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._sender.fileno())
        for number in _SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                # Python writes the number to the socket at once, and calls the handler
                # when the main thread is back in Python.
                self._old_handlers[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(receiver,), daemon=True).start()

    def _listen(self, receiver: socket.socket) -> None:
        numbers = {int(number): number.name for number in self._old_handlers}
        with receiver:
            while received := receiver.recv(64):
                for number in received:
                    if number in numbers:
                        self._on_signal(numbers[number])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._sender is None:
            return
        signal.set_wakeup_fd(self._old_wakeup)
        self._sender.close()
        for number, handler in self._old_handlers.items():
            # None is a handler that was not installed from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _code(name: str) -> int:
    return 128 + signal.Signals[name] if name in signal.Signals.__members__ else 1
