"""The directory that one run writes, and the lock that keeps a second run out."""

import contextlib
import os
from collections.abc import Iterator

from maxfdl import outside
from maxfdl.checkpoint.steps import EMERGENCY_ID, steps_in
from maxfdl.data.tokenizers import Tokenizer
from maxfdl.errors import UserError
from maxfdl.files import folder_replaced, write_atomically
from maxfdl.paths import AnyPath, as_path, lexists
from maxfdl.run.lock import LOCK, Lock, lock_of
from maxfdl.train.metrics import METRICS

CONFIG_JSON, CONFIG_TEXT, COMMAND = "config.json", "config.txt", "command.txt"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


class RunDirectory:
    """What a run leaves: its config, command, tokenizer, metrics and checkpoints.

    Args:
      path: The directory; made if it is missing.

    Raises:
      UserError: If it cannot be made.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = as_path(path).absolute()
        self._lock: Lock | None = None
        with self._explain_failure():
            self.path.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints(self) -> AnyPath:
        return self.path / CHECKPOINTS

    def lock(self) -> None:
        """Takes the directory for this process, until `unlock` or its end.

        See `maxfdl.run.lock`. Of several processes of one run, the first alone takes
        it.

        Raises:
          UserError: If another run has it (at once), or if it cannot be written.
        """
        with self._explain_failure():
            lock = lock_of(self.path)
            lock.take()
        self._lock = lock

    def holder(self) -> str | None:
        """Returns who took the lock last; None if nobody ever has."""
        with self._explain_failure():
            try:
                return (self.path / LOCK).read_text("utf-8").partition("\n")[0]
            except FileNotFoundError:
                return None

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.give_back()
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
        return outside.read_text(file) if lexists(file) else None

    def has_results(self) -> bool:
        """Returns whether a run has trained here: it has logged or saved a step."""
        with self._explain_failure():
            metrics = self.path / METRICS
            has_logged = metrics.is_file() and metrics.stat().st_size > 0
            has_saved = (self.path / EMERGENCY_ID).is_file()
            return has_logged or has_saved or bool(steps_in(self.checkpoints))

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"Run directory {self.path} cannot be used ({error.strerror}:"
                f" {error.filename or self.path}); give another with --run_dir."
            ) from error
