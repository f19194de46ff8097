"""What keeps a second run out of a run directory."""

import contextlib
import fcntl
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Protocol

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.paths import AnyPath

LOCK = "run.lock"


class Lock(Protocol):
    """Of a run directory, for one process."""

    def take(self) -> None:
        """Takes it.

        Raises:
          UserError: If another process has it.
        """
        ...

    def give_back(self) -> None: ...


def lock_of(directory: AnyPath) -> Lock:
    """Returns the lock of a directory, on disk or in a bucket."""
    is_remote = isinstance(directory, BucketPath)
    return Lease(directory) if is_remote else FileLock(directory)


class FileLock:
    """A lock of the kernel.

    The kernel drops it when the process ends, however it ends, so the file that stays
    behind blocks nobody.
    """

    def __init__(self, directory: pathlib.Path):
        self._directory = directory
        self._file: int | None = None

    def take(self) -> None:
        # A plain descriptor: unlike a file object, nothing closes it by accident.
        file = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 1000, 0).decode().strip() or "another process"
            os.close(file)
            raise _in_use(self._directory, holder) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{_this_process()}\n".encode(), 0)
        os.fsync(file)  # for other machines to read
        self._file = file

    def give_back(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Lease:
    """An object that says who has the directory, and is renewed as long as that is so.

    A bucket has no locks. A process that finds the object of another one watches it: if
    it is not renewed for `patience` seconds, its process has ended. No clocks are
    compared. A process that finds, when it renews, that another has taken over, ends at
    once: it must have been stopped for a long time.

    Args:
      directory: What is held.
      every: Seconds from one renewal to the next.
      patience: Seconds without renewal after which a lease is void.
      settle: Seconds after which two processes that took it at once see who has it.
      on_loss: Is called if another process has taken over.
    """

    def __init__(
        self,
        directory: BucketPath,
        *,
        every: float = 15.0,
        patience: float = 60.0,
        settle: float = 1.0,
        on_loss: Callable[[], object] | None = None,
    ):
        self._directory = directory
        self._object = directory / LOCK
        self._every, self._patience, self._settle = every, patience, settle
        self._on_loss = on_loss or (lambda: os._exit(2))
        self._holder = ""
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        found = self._read()
        if found and not _has_ended(found):
            self._await_end(found)
        self._holder = _this_process()
        self._renew(0)
        time.sleep(self._settle)
        self._check_held()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        # A lease that cannot be removed is void soon, and the run has ended well.
        with contextlib.suppress(OSError):
            if self._is_held():
                self._object.unlink()

    def _await_end(self, found: str) -> None:
        """Waits until a lease is void; raises UserError if it is renewed meanwhile."""
        holder = found.partition("\n")[0]
        print(
            f"{self._directory} was in use by {holder}; looking for"
            f" {self._patience:.0f} seconds whether that run goes on",
            file=sys.stderr,
            flush=True,
        )
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            time.sleep(min(self._every / 3, self._patience / 10))
            now = self._read()
            if not now:
                return
            if now != found:
                raise _in_use(self._directory, now.partition("\n")[0])

    def _keep(self) -> None:
        count = 0
        while not self._ended.wait(self._every):
            count += 1
            try:
                if not self._is_held():
                    print(
                        f"{self._object} is no longer this run's: it was taken over by"
                        " another run, which heard nothing of this one, or removed."
                        " This run ends, and saves nothing.",
                        file=sys.stderr,
                        flush=True,
                    )
                    self._on_loss()
                    return
                self._renew(count)
            except OSError:
                continue  # the store is out of reach for now; the saves tell of it

    def _renew(self, count: int) -> None:
        lines = self._holder, f"renewed {count} times", _process_table()
        self._object.write_text("\n".join(lines) + "\n", "utf-8")

    def _check_held(self) -> None:
        if not self._is_held():
            raise _in_use(self._directory, self._read().partition("\n")[0])

    def _is_held(self) -> bool:
        return self._read().partition("\n")[0] == self._holder

    def _read(self) -> str:
        try:
            return self._object.read_text("utf-8")
        except FileNotFoundError:
            return ""


def _this_process() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _has_ended(found: str) -> bool:
    """Says whether a lease is of a process of this machine that is not there now."""
    lines = found.splitlines()
    number = re.match(r"process (\d+) ", lines[0])
    if number is None or not _process_table() or lines[-1] != _process_table():
        return False
    try:
        os.kill(int(number[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(number[1]) == os.getpid()  # an earlier lease of this process


def _process_table() -> str:
    """Returns what tells where numbers of processes are those of this process: the boot
    of the machine and the container. It is empty where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _in_use(directory: AnyPath, holder: str) -> UserError:
    return UserError(
        f"Run directory {directory} is in use by {holder}; wait for that run, stop it,"
        " or give another directory with --run_dir."
    )
