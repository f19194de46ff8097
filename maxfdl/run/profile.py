"""Tracing some steps of a run for a profiler."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

from maxfdl.bucket import BucketPath
from maxfdl.errors import UserError
from maxfdl.files import upload_folder
from maxfdl.paths import AnyPath, remove_folder


@dataclasses.dataclass
class Profile:
    """Traces steps `first` to `last`, counted from 1, into `directory`.

    The profiler writes to disk alone; a trace for a bucket is uploaded at its end.

    Look at the trace with TensorBoard's profile plugin or with xprof.
    """

    first: int
    last: int
    directory: AnyPath
    _runs: bool = dataclasses.field(default=False, init=False)
    _folder: pathlib.Path = dataclasses.field(init=False)

    @classmethod
    def parse(cls, text: str, directory: AnyPath) -> "Profile":
        """Reads `10:13`, or `10` for one step.

        Raises:
          UserError: If it is not of that form.
        """
        first, _, last = text.partition(":")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise UserError(
                f"--profile_steps={text} must be two steps, such as 10:13, or one."
            )
        steps = int(first), int(last or first)
        if not 1 <= steps[0] <= steps[1]:
            raise UserError(
                f"--profile_steps={text} must name steps from 1 on, the first not after"
                " the last."
            )
        return cls(*steps, directory)

    def before(self, step: int, state: Any) -> None:
        """Starts at `first`, or at once where a run continues after it."""
        if self.first <= step <= self.last and not self._runs:
            jax.block_until_ready(state)
            if isinstance(self.directory, pathlib.Path):
                self._folder = self.directory
            else:
                self._folder = pathlib.Path(tempfile.mkdtemp())
            jax.profiler.start_trace(str(self._folder))
            self._runs = True

    def after(self, step: int, state: Any) -> None:
        if step == self.last:
            self.end(state)

    def end(self, state: Any) -> None:
        """Writes what was traced, also if the run stops before `last`."""
        if self._runs:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._runs = False
            if isinstance(self.directory, BucketPath):
                upload_folder(self._folder, self.directory)
                remove_folder(self._folder)
