"""The connection of one process to the others of its run."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from maxfdl.run.processes.heartbeat import Silence, silent
from maxfdl.run.processes.hub import Hub
from maxfdl.run.processes.place import Place
from maxfdl.run.processes.wire import (
    SAY_AFTER,
    Message,
    decode,
    died,
    encode,
    own_name,
    watch,
)

_RETRY_SECONDS = 0.2
_WELCOME_SECONDS = 30.0

Answer = Callable[[Message], Message | None]


class Peers:
    """The other processes of the run.

    A thread joins them in the background and then takes in what they say. When the run
    ends at one of them, for whatever reason, it prints why and ends this process too,
    for the main thread may be waiting for ever in a collective operation.

    Args:
      place: The place of this process; process 0 also serves the others.
      say: Prints a line.
      leave: Ends this process with an exit code.

    Attributes:
      answers: What to do when a message of some kind comes; what a function returns is
        sent back.
      has_joined: Whether process 0 has taken this one in.

    Raises:
      UserError: If process 0 cannot serve the others.
    """

    def __init__(
        self, place: Place, say: Callable[[str], None], leave: Callable[[int], None]
    ):
        self.place = place
        self.answers: dict[str, Answer] = {
            "where": lambda _: {"kind": "at", "step": None},
            "ping": lambda _: {"kind": "pong"},
        }
        self._say = say
        self._leave = leave
        self._hub = Hub(place) if place.process_id == 0 else None
        self._name_of_0 = ""
        self._changed = threading.Condition()
        self._connection: socket.socket | None = None
        self.has_joined = False
        self._met: dict[str, Any] = {}
        self._is_settled = False  # how this process ends
        self._silence: Silence | None = None  # of process 0
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def name(self) -> str:
        return f"process {self.place.process_id} of {self.place.num_processes}"

    def meet(self, name: str, value: Any = None) -> Any:
        """Waits until all processes have come here with `name`; returns the value that
        process 0 brought, which is one of JSON."""
        self.send({"kind": "meet", "name": name, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: name in self._met)
            return self._met[name]

    def send(self, message: Message) -> None:
        """Sends a message, as soon as this process has joined the others."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_joined)
            self._send(message)

    def settle(self) -> bool:
        """Settles that this process ends by itself, whatever the others say from now
        on; returns False if it is ending by one of them."""
        with self._changed:
            was_settled, self._is_settled = self._is_settled, True
            return not was_settled

    def end(self, text: str, code: int) -> None:
        """Tells all others to end, with `text` to print and their exit code.

        Waits until they are told, or some seconds if they have not come yet.
        """
        self.settle()
        with self._changed:
            self._changed.wait_for(lambda: self.has_joined, _seconds_to_tell(code))
            if self.has_joined:
                self._send({"kind": "end", "text": text, "code": code})
        self._wait_for_others(code)

    def end_all(self, text: str, code: int) -> None:
        """Prints an error, and ends this process and all others with it."""
        self._say(f"error: {text}")
        self.end(text, code)
        self._leave(code)

    def finish(self) -> None:
        """Takes leave; all processes do, after they have met for the last time."""
        self.settle()
        with self._changed:
            self._send({"kind": "bye"})
            assert self._connection is not None
            self._connection.shutdown(socket.SHUT_WR)
        self._wait_for_others(code=0)

    def _send(self, message: Message) -> None:
        assert self._connection is not None
        try:
            self._connection.sendall(encode(message))
        except OSError:
            pass  # the thread that listens notices too, and ends the process

    def _wait_for_others(self, code: int) -> None:
        if self._hub is not None:
            self._hub.wait_until_alone(_seconds_to_tell(code))

    def _listen(self) -> None:
        """Joins the others and takes in what they say, until the run ends."""
        connection = self._connect()
        if connection is None:
            return
        # An OSError: that machine does not answer. A ValueError: that is no message.
        with contextlib.suppress(OSError, ValueError), connection:
            self._connection = connection
            connection.sendall(encode(self._hello()))
            with connection.makefile("rb") as lines:
                for line in lines:
                    self._take_in(decode(line), connection)
        if not self.has_joined:
            self._ended(
                f"what answers at {self.place.address} is not process 0 of a run; give"
                " all processes the --coordinator of process 0.",
                2,
            )
        else:
            self._ended(died(0, self.place.num_processes, self._name_of_0), 1)

    def _hello(self) -> Message:
        return {
            "kind": "hello",
            "process": self.place.process_id,
            "of": self.place.num_processes,
            "name": own_name(),
        }

    def _take_in(self, message: Message, connection: socket.socket) -> None:
        if self._silence is not None:
            self._silence.broken()
        match message["kind"]:
            case "welcome":
                connection.settimeout(None)
                self._silence = silence = Silence(message["heartbeat"])
                watching = threading.Thread(target=self._watch_over_0, args=(silence,))
                watching.daemon = True
                watching.start()
                with self._changed:
                    self._name_of_0 = message["name"]
                    self.has_joined = True
                    self._changed.notify_all()
            case "met":
                with self._changed:
                    self._met[message["name"]] = message["value"]
                    self._changed.notify_all()
            case "say":
                self._say(message["text"])
            case "end":
                self._ended(message["text"], message["code"])
            case kind if kind in self.answers:
                if answer := self.answers[kind](message):
                    self.send(answer)

    def _watch_over_0(self, silence: Silence) -> None:
        """Ends this process if process 0 does not ask for a sign of life any more."""
        while not self._is_settled:
            time.sleep(silence.beat)
            if silence.is_too_long():
                count = self.place.num_processes
                self._ended(silent(0, count, self._name_of_0, silence.limit), 1)

    def _ended(self, text: str, code: int) -> None:
        """Ends this process too, unless it has said itself how the run ends."""
        if not self.settle():
            return
        self._say(text if code > 128 else f"error: {text}")
        self._wait_for_others(code)
        self._leave(code)

    def _connect(self) -> socket.socket | None:
        """Returns a connection to process 0, which may start later than this one."""
        place = self.place
        host = "localhost" if self._hub and not place.on_one_machine else place.host
        start, has_said = time.monotonic(), False
        while True:
            try:
                connection = socket.create_connection((host, place.port), timeout=5)
                connection.settimeout(_WELCOME_SECONDS)
                watch(connection)
                return connection
            except OSError as error:
                waited = time.monotonic() - start
                problem = f"process 0 at {place.address} ({error.strerror or error})"
            if waited > place.timeout:
                self._ended(
                    f"process {place.process_id} waited {place.timeout:g} s for"
                    f" {problem}; start process 0 too, and give all processes its"
                    " --coordinator.",
                    2,
                )
                return None
            if waited > SAY_AFTER and not has_said:
                self._say(f"waiting for {problem}")
                has_said = True
            time.sleep(_RETRY_SECONDS)


def _seconds_to_tell(code: int) -> float:
    """Returns how long to wait for processes that have not come yet; whoever sends a
    signal waits too."""
    return 2.0 if code > 128 else 10.0
