"""Processes of a run that are none: several of them live in the process of a test."""

import contextlib
import queue
import socket
import threading

import pytest

from maxfdl.run.processes.peers import Peers
from maxfdl.run.processes.place import Place

SOON = 30.0  # seconds, on a machine with much else to do


class Process:
    """One of the processes of a run, but for being one."""

    def __init__(self, place: Place):
        self.said: list[str] = []
        self._codes: queue.Queue[int] = queue.Queue()
        self._is_made = threading.Event()
        self.peers = Peers(place, say=self.said.append, leave=self._leave)
        self._is_made.set()

    def _leave(self, code: int) -> None:
        self._is_made.wait(SOON)  # the thread of `peers` may come here before that
        self._codes.put(code)
        self.die()

    def die(self) -> None:
        """Does to the connection what the kernel does at the end of a process."""
        connection = self.peers._connection
        with contextlib.suppress(OSError):  # it may be gone already
            if connection is not None:
                connection.shutdown(socket.SHUT_RDWR)

    def exit_code(self) -> int:
        return self._codes.get(timeout=SOON)

    def runs_on(self) -> bool:
        return self._codes.empty()


@pytest.fixture
def start(monkeypatch):
    """Starts process `index` of `count` that meet at one port."""
    seconds = "maxfdl.run.processes.peers._seconds_to_tell"
    monkeypatch.setattr(seconds, lambda code: 1.0)
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]

    def start(index: int, count: int = 2, timeout: float = SOON, **more) -> Process:
        process = Process(Place("localhost", port, index, count, timeout, **more))
        start.processes.append(process)
        return process

    start.port, start.processes = port, []
    return start
