"""A connection to JAX's coordination service that outlives the service a little."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from maxfdl.run.processes.wire import watch

_PIECE = 2**16
_RETRY_SECONDS = 0.1
_GRACE_SECONDS = 10.0


class Relay:
    """Passes bytes between the JAX of this process and the service in process 0.

    When the connection to the service breaks, JAX aborts the process at once with a
    page from C++. Through a relay it notices ten seconds later. `Peers` has then ended
    the process with a sentence, if process 0 is gone.

    Args:
      target: Host and port of the service, which may start later.
      timeout: Seconds to try to reach it.
      give_up: Called with what the problem is, if it cannot be reached.
    """

    def __init__(
        self, target: tuple[str, int], timeout: float, give_up: Callable[[str], None]
    ):
        self._target = target
        self._timeout = timeout
        self._give_up = give_up
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        _in_background(self._serve)

    def _serve(self) -> None:
        while True:
            near, _ = self._server.accept()
            _in_background(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        far = self._reach_target()
        if far is None:
            return
        _in_background(_pass, near, far)
        _pass(far, near)
        time.sleep(_GRACE_SECONDS)
        for connection in (near, far):
            with contextlib.suppress(OSError), connection:
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads

    def _reach_target(self) -> socket.socket | None:
        until = time.monotonic() + self._timeout
        while True:
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError as error:
                problem = error.strerror or str(error)
            else:
                far.settimeout(None)
                watch(far)
                return far
            if time.monotonic() > until:
                self._give_up(problem)
                return None
            time.sleep(_RETRY_SECONDS)


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)


def _in_background(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()
