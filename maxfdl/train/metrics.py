"""Writes the metrics of a run: one line of JSON per logged step, and TensorBoard."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated

import jax

from maxfdl.errors import UserError
from maxfdl.files import Growing, growing, write_atomically
from maxfdl.markers import FromParent
from maxfdl.paths import as_path
from maxfdl.train.event_file import EventFile

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricWriter:
    """Appends to `metrics.jsonl`; a process that is killed loses at most one line, or
    where that is in a bucket, the lines of the last `UPLOAD_SECONDS`.

    A line is `{"step": 10, "loss": 2.5, ...}`. JSON has no NaN or infinities: they are
    the strings "NaN", "Infinity" and "-Infinity", which `float` reads back. Only
    process 0 writes.

    Args:
      tensorboard: Whether to write the same scalars as TensorBoard events too.
      directory: The run directory.
    """

    def __init__(
        self,
        tensorboard: bool = True,
        *,
        directory: Annotated[str | os.PathLike, FromParent],
    ):
        self.tensorboard = tensorboard
        self.directory = as_path(directory)
        self._file: Growing | None = None
        self._events: EventFile | None = None
        self._first_step: int | None = None

    def open(self) -> None:
        """Opens the files; otherwise the first `write` does.

        Raises:
          UserError: If they cannot be written.
        """
        if jax.process_index() == 0:
            with self._explain_failure("Metrics"):
                self._opened()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step.

        Raises:
          UserError: If the files cannot be written.
        """
        if jax.process_index() != 0:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step} | {name: _as_json(v) for name, v in values.items()}
        with self._explain_failure(f"Metrics of step {step}"):
            self._opened().append(json.dumps(line, allow_nan=False).encode() + b"\n")
            if self._events is not None:
                self._events.write(step, values)

    def truncate_after(self, step: int) -> set[str]:
        """Drops what an earlier start wrote after `step`, at which this one continues.

        The file then reads as one uninterrupted run. A last line that was cut short by
        a kill is dropped as well. Call it before the first `write`.

        Returns:
          The names of the metrics of `step` that stay.
        """
        assert self._file is None, "truncate_after comes before the first write"
        self._first_step = step + 1
        path = self.directory / METRICS
        if jax.process_index() != 0 or not path.exists():
            return set()
        with self._explain_failure("Metrics"):
            text = path.read_text("utf-8", errors="replace")
            lines = [line for line in text.splitlines(True) if _is_kept(line, step)]
            if len("".join(lines)) != len(text):
                write_atomically(path, "".join(lines))
        kept = map(json.loads, lines)
        return {name for line in kept if line["step"] == step for name in line}

    def close(self) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        self._file = self._events = None

    def _opened(self) -> Growing:
        if self._file is None:
            self._file = growing(self.directory / METRICS)
            if self.tensorboard:
                folder = self.directory / TENSORBOARD
                self._events = EventFile(folder, self._first_step)
        return self._file

    @contextlib.contextmanager
    def _explain_failure(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{what} cannot be written to {self.directory / METRICS}"
                f" ({error.strerror}); make room there, or give another directory with"
                " --run_dir."
            ) from error


def _as_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _is_kept(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        print(f"{METRICS}: dropped an unreadable line: {line[:60]!r}", file=sys.stderr)
        return False
