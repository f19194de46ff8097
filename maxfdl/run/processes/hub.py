"""The server in process 0 where the processes of a run meet."""

import asyncio
import contextlib
import os
import threading
from typing import Any

from maxfdl.errors import UserError
from maxfdl.run.processes.heartbeat import Silence, silent
from maxfdl.run.processes.place import Place
from maxfdl.run.processes.wire import (
    LONGEST_LINE,
    SAY_AFTER,
    Message,
    decode,
    died,
    encode,
    own_name,
    watch,
)


class Hub:
    """Passes messages between the processes of a run, each of which is connected to it.

    All that it knows is touched by its own thread alone.

    - `meet`: once all processes have come with the same name, each gets the value that
      process 0 brought.
    - `stop`: a process was asked to stop. The hub asks all `where` they are, and tells
      them the step to stop after, one more than the furthest has finished. If one has
      not begun its first step, nothing is trained, and all end at once.
    - `end`: a process ends the run; all others are told why, and so are those that come
      later. So does a connection that ends without `bye`, and a process that answers
      no `ping` within the heartbeat.

    Args:
      place: That of process 0.

    Raises:
      UserError: If the port cannot be had.
    """

    def __init__(self, place: Place):
        self._place = place
        self._names: dict[int, str] = {}  # who has come
        self._here: dict[int, asyncio.StreamWriter] = {}  # who is to be told things
        self._connected: set[int] = set()
        self._silences: dict[int, Silence] = {}  # of who is to be told things
        self._brought: dict[str, dict[int, Any]] = {}
        self._steps: dict[int, int | None] = {}
        self._stop: Message | None = None
        self._end: Message | None = None
        self._all_gone = threading.Event()
        self._loop = asyncio.new_event_loop()
        host = place.host if place.on_one_machine else None
        try:
            self._server = self._loop.run_until_complete(
                asyncio.start_server(self._serve, host, place.port, limit=LONGEST_LINE)
            )
        except OSError as error:
            self._loop.close()
            problem = os.strerror(error.errno or 0)
            raise UserError(
                f"process 0 cannot wait for the others at {place.address} ({problem});"
                " give all processes another --coordinator, at a free port of the"
                " machine of process 0."
            ) from error
        self._tasks = [
            self._loop.create_task(each)
            for each in (self._wait_for_all(), self._watch_over_all())
        ]
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def wait_until_alone(self, seconds: float) -> None:
        """Waits until every other process has come, has been told what there was to
        tell, and has gone; or for so many seconds."""
        self._all_gone.wait(seconds)

    async def _wait_for_all(self) -> None:
        """Ends the run if not all processes come in time; process 0 says who lacks."""
        left = self._place.timeout
        while left > 0:
            await asyncio.sleep(min(SAY_AFTER, left))
            left -= SAY_AFTER
            if self._has_all():
                return
            if left > 0 and 0 in self._here:
                text = f"waiting for {self._missing()} at {self._place.address}"
                self._here[0].write(encode({"kind": "say", "text": text}))
        self._end_all(
            f"{self._missing()} did not join process 0 at {self._place.address} in"
            f" {self._place.timeout:g} s; start all processes with the same command and"
            " each with its own --process_id.",
            code=2,
        )
        self._all_gone.set()  # no longer waits for those

    async def _watch_over_all(self) -> None:
        """Ends the run if a process that is here does not answer."""
        while True:
            await asyncio.sleep(Silence(self._place.heartbeat).beat)
            self._tell({"kind": "ping"})
            for process in [
                p for p, each in self._silences.items() if each.is_too_long()
            ]:
                count, name = self._place.num_processes, self._names[process]
                limit = self._place.heartbeat
                self._end_all(silent(process, count, name, limit), code=1)
                self._departs(process)  # nobody waits until it has gone

    def _has_all(self) -> bool:
        return len(self._names) == self._place.num_processes

    def _missing(self) -> str:
        numbers = range(self._place.num_processes)
        missing = [str(each) for each in numbers if each not in self._names]
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        one = "process" if len(missing) == 1 else "processes"
        return f"{one} {shown} of {self._place.num_processes}"

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        watch(writer.get_extra_info("socket"))
        process: int | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            process = self._welcome(decode(await reader.readline()), writer)
            while process is not None and (line := await reader.readline()):
                if silence := self._silences.get(process):
                    silence.broken()
                self._handle(process, decode(line))
        if process is not None:
            self._disconnected(process)
        writer.close()

    def _welcome(self, hello: Message, writer: asyncio.StreamWriter) -> int | None:
        """Takes in a process that says who it is; returns its number, or None."""
        process, num_processes = int(hello["process"]), int(hello["of"])
        if hello["kind"] != "hello" or not 0 <= process < num_processes:
            return None
        problem = None
        if num_processes != self._place.num_processes:
            problem = (
                f"process {process} has --num_processes={num_processes}, and process 0"
                f" has --num_processes={self._place.num_processes}; give all the same."
            )
        elif process in self._names:
            problem = (
                f"two processes have --process_id={process}: {self._names[process]} and"
                f" {hello['name']}; give each its own."
            )
        if problem is not None:
            writer.write(encode({"kind": "end", "text": problem, "code": 2}))
            if not self._has_all():
                self._end_all(problem, code=2)
            return None
        self._names[process] = str(hello["name"])
        self._connected.add(process)
        if self._end is not None:
            writer.write(encode(self._end))
        else:
            self._here[process] = writer
            self._silences[process] = Silence(heartbeat := self._place.heartbeat)
            welcome = {"kind": "welcome", "name": own_name(), "heartbeat": heartbeat}
            writer.write(encode(welcome))
        return process

    def _handle(self, process: int, message: Message) -> None:
        match message["kind"]:
            case "meet":
                self._meet(process, message["name"], message["value"])
            case "stop" if not self._has_all():
                self._end_all(message["text"], message["code"])
            case "stop" if self._stop is None:
                self._stop = message
                self._tell({"kind": "where"})
            case "at":
                self._agree_on_stop(process, message["step"])
            case "end":
                self._departs(process)
                self._end_all(message["text"], message["code"])
            case "bye":
                self._departs(process)

    def _meet(self, process: int, name: str, value: Any) -> None:
        brought = self._brought.setdefault(name, {})
        brought[process] = value
        if len(brought) == self._place.num_processes:
            del self._brought[name]
            self._tell({"kind": "met", "name": name, "value": brought[0]})

    def _agree_on_stop(self, process: int, step: int | None) -> None:
        assert self._stop is not None
        self._steps[process] = step
        if len(self._steps) < self._place.num_processes:
            return
        steps = [each for each in self._steps.values() if each is not None]
        if len(steps) == len(self._steps):
            after = max(steps) + 1
            self._tell({**self._stop, "kind": "stop_after", "step": after})
        else:
            self._end_all(self._stop["text"], self._stop["code"])

    def _end_all(self, text: str, code: int) -> None:
        """Tells all that the run has ended, process 0 last: its end ends this hub."""
        if self._end is None:
            self._end = {"kind": "end", "text": text, "code": code}
            self._tell(self._end)

    def _tell(self, message: Message) -> None:
        for process in sorted(self._here, reverse=True):
            self._here[process].write(encode(message))

    def _departs(self, process: int) -> bool:
        """Returns whether it was still to be told things."""
        self._connected.discard(process)
        self._silences.pop(process, None)
        if self._has_all() and self._connected <= {0}:
            self._all_gone.set()
        return self._here.pop(process, None) is not None

    def _disconnected(self, process: int) -> None:
        if self._departs(process):
            count, name = self._place.num_processes, self._names[process]
            self._end_all(died(process, count, name), code=1)
