"""Tracing some steps of a run for a profiler."""

import dataclasses
import pathlib
from typing import Any

import jax

from maxfdl.errors import UserError


@dataclasses.dataclass
class Profile:
    """Traces steps `first` to `last`, counted from 1, into `directory`.

    Look at the trace with TensorBoard's profile plugin or with xprof.
    """

    first: int
    last: int
    directory: pathlib.Path
    _runs: bool = dataclasses.field(default=False, init=False)

    @classmethod
    def parse(cls, text: str, directory: pathlib.Path) -> "Profile":
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
            jax.profiler.start_trace(str(self.directory))
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
