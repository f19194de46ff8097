"""All processes of a run on this machine, started by one: `launch --processes=4`."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TextIO

from absl import flags

from maxfdl.errors import UserError
from maxfdl.run.processes.place import VARIABLES

_FLAG = "processes"
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE_SECONDS = 60.0
"""How long the others may take to notice that one has failed, and to end."""

_DEVICES = "JAX_LOCAL_DEVICE_IDS"


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flag that `asked_for` reads, once."""
    if _FLAG not in flag_values:
        flags.DEFINE_integer(
            _FLAG,
            None,
            "Start so many processes on this machine, which train together.",
            lower_bound=1,
            flag_values=flag_values,
        )


def asked_for(argv: Sequence[str]) -> int | None:
    """Returns how many processes the command line asks for; None: this one alone.

    Raises:
      UserError: If that is no positive number, or if it also says which of several
        processes this is.
    """
    values = flags.FlagValues()
    define_flags(values)
    try:
        values(argv, known_only=True)
    except flags.Error as error:
        raise UserError(str(error)) from None
    count = values[_FLAG].value
    mine = [name for name in VARIABLES if any(_names(arg, name) for arg in argv)]
    if count is not None and mine:
        raise UserError(
            f"--{_FLAG} starts all processes of a run, and --{mine[0]} says which of"
            " them this is; give one of the two."
        )
    return count


def _names(argument: str, flag: str) -> bool:
    return argument.startswith("-") and argument.lstrip("-").split("=")[0] == flag


def without_flags(argv: Sequence[str], names: Sequence[str] = (_FLAG,)) -> list[str]:
    """Returns arguments without these flags and their values: by default, those for
    each of the processes."""
    kept, rest = [], iter(argv)
    for arg in rest:
        if not any(_names(arg, name) for name in names):
            kept.append(arg)
        elif "=" not in arg:
            next(rest, None)  # its value
    return kept


def environments(count: int, base: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns the environment of each process: its place, and its share of the GPUs."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = [
        {
            VARIABLES["coordinator"]: f"localhost:{port}",
            VARIABLES["num_processes"]: str(count),
            VARIABLES["process_id"]: str(i),
            "PYTHONUNBUFFERED": "1",
        }
        for i in range(count)
    ]
    gpus = len([*pathlib.Path("/dev").glob("nvidia[0-9]*")])
    if gpus and gpus % count == 0 and _DEVICES not in base:
        each = gpus // count
        for i, place in enumerate(places):
            ids = range(i * each, (i + 1) * each)
            place[_DEVICES] = ",".join(map(str, ids))
    return [{**base, **place} for place in places]


def run(command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> int:
    """Runs the command once in each environment, and returns the first failure's code.

    Lines of all but the first begin with the number of the process. Signals that would
    end this process go to all of them, which save and end; if one fails, the others
    have a minute to notice.
    """
    started = [
        subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches this process alone, and goes on
        )
        for env in environments
    ]
    readers = [
        threading.Thread(target=_pass_on, args=(source, target, i), daemon=True)
        for i, process in enumerate(started)
        for source, target in (
            (process.stdout, sys.stdout),
            (process.stderr, sys.stderr),
        )
    ]
    with _forwarding(started):
        for reader in readers:
            reader.start()
        code = _wait(started)
        for reader in readers:
            reader.join()
    return code


def _wait(started: Sequence[subprocess.Popen]) -> int:
    """Returns the exit code of the first that fails, or 0, when all have ended."""
    first, deadline = 0, None
    while any(process.poll() is None for process in started):
        time.sleep(0.05)
        codes = [process.poll() for process in started]
        if not first and (failed := [code for code in codes if code]):
            first, deadline = failed[0], time.monotonic() + _GRACE_SECONDS
            for process in started:
                process.send_signal(signal.SIGCONT)  # a stopped one learns of it, too
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
    first = first or next(filter(None, (p.returncode for p in started)), 0)
    return 128 - first if first < 0 else first


@contextlib.contextmanager
def _forwarding(started: Sequence[subprocess.Popen]) -> Iterator[None]:
    def forward(number: int, frame: object) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(source: IO[bytes], target: TextIO, process: int) -> None:
    """Prints what a process prints; if nobody reads it any more, it is told."""
    prefix = f"[{process}] " if process else ""
    with source, contextlib.suppress(BrokenPipeError, ValueError):
        for line in source:
            target.write(prefix + line.decode("utf-8", "replace"))
            target.flush()


def run_if_asked(argv: Sequence[str]) -> int | None:
    """Runs `argv` in several processes if it asks for that, and returns the exit code.

    Raises:
      UserError: As `asked_for`.
    """
    count = asked_for(argv)
    if count is None or count == 1:
        return None
    command = [sys.executable, "-m", "maxfdl.launch", *without_flags(argv[1:])]
    return run(command, environments(count, dict(os.environ)))
