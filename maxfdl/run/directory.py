"""The directory that one run writes, and the lock that keeps a second run out."""

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from maxfdl import outside
from maxfdl.checkpoint.steps import steps_in
from maxfdl.data.tokenizers import Tokenizer
from maxfdl.errors import UserError
from maxfdl.files import folder_replaced, write_atomically
from maxfdl.train.metrics import METRICS

CONFIG_JSON, CONFIG_TEXT, COMMAND = "config.json", "config.txt", "command.txt"
CHECKPOINTS = "checkpoints"
LOCK = "run.lock"
TOKENIZER = "tokenizer"


class RunDirectory:
    """What a run leaves: its config, command, tokenizer, metrics and checkpoints.

    Args:
      path: The directory; made if it is missing.

    Raises:
      UserError: If it cannot be made.
    """

    def __init__(self, path: str | os.PathLike):
        if "://" in os.fspath(path):
            raise UserError(
                f"Run directory {path} must be a path of a mounted file system; mount"
                " the bucket and give that path."
            )
        self.path = pathlib.Path(path).absolute()
        self._lock: int | None = None
        with self._explain_failure():
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / CHECKPOINTS

    def lock(self) -> None:
        """Takes the directory for this process, until `unlock` or its end.

        The kernel drops the lock when the process ends, however it ends, so the file
        that stays behind blocks nobody. Of several processes of one run, the first
        alone takes it.

        Raises:
          UserError: If another run has it (at once), or if it cannot be written.
        """
        with self._explain_failure():
            # A plain descriptor: unlike a file object, nothing closes it by accident.
            file = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(file, 1000, 0).decode().strip() or "another process"
                os.close(file)
                raise UserError(
                    f"Run directory {self.path} is in use by {holder}; wait for that"
                    " run, stop it, or give another directory with --run_dir."
                ) from None
            os.ftruncate(file, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S %z")
            holder = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
            os.pwrite(file, holder.encode(), 0)
            os.fsync(file)  # for other machines to read
        self._lock = file

    def holder(self) -> str | None:
        """Returns who took the lock last; None if nobody ever has."""
        with self._explain_failure():
            try:
                return (self.path / LOCK).read_text("utf-8").strip()
            except FileNotFoundError:
                return None

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, *, config_json: str, config_text: str, command: str) -> None:
        """Writes what the run was started from, each file at once or not at all.

        Raises:
          UserError: If the directory cannot be written.
        """
        contents = {
            CONFIG_JSON: config_json,
            CONFIG_TEXT: config_text,
            COMMAND: command,
        }
        with self._explain_failure():
            for name, text in contents.items():
                write_atomically(self.path / name, text)

    def write_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Keeps the tokenizer, as files that transformers loads too.

        Text can be generated and weights exported when the folder or the text that the
        tokenizer came from is gone.

        Raises:
          UserError: If the directory cannot be written.
        """
        with (
            self._explain_failure(),
            folder_replaced(self.path / TOKENIZER) as folder,
        ):
            tokenizer.save(folder)

    def config_json(self) -> str | None:
        """Returns the config of an earlier start in this directory, or None."""
        file = self.path / CONFIG_JSON
        return outside.read_text(file) if os.path.lexists(file) else None

    def has_results(self) -> bool:
        """Returns whether a run has trained here: it has logged or saved a step."""
        with self._explain_failure():
            metrics = self.path / METRICS
            has_logged = metrics.is_file() and metrics.stat().st_size > 0
            return has_logged or bool(steps_in(self.checkpoints))

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Run directory {self.path} cannot be used ({error.strerror}:"
                f" {error.filename or self.path}); give another with --run_dir."
            ) from error
