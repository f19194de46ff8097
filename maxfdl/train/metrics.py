"""Writes the metrics of a run: one line of JSON per logged step, and TensorBoard."""

import json
import logging
import math
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import IO, Annotated, Any

import jax

from maxfdl.errors import UserError
from maxfdl.files import write_atomically
from maxfdl.markers import FromParent

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricWriter:
    """Appends to `metrics.jsonl`, so that a kill loses at most the line under way.

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
        self.directory = pathlib.Path(directory)
        self._file: IO[str] | None = None
        self._events: Any = None
        self._first_step: int | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of one step.

        Raises:
          UserError: If the file cannot be written.
        """
        if jax.process_index() != 0:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step} | {name: _as_json(v) for name, v in values.items()}
        try:
            file = self._file = self._file or self._open()
            # Line buffered: one write for each line.
            file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"Metrics of step {step} cannot be written to"
                f" {self.directory / METRICS} ({error.strerror}); make room there, or"
                " give another directory with --run_dir."
            ) from error
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)
            self._events.flush()

    def truncate_after(self, step: int) -> None:
        """Drops what an earlier run wrote after `step`, where this run continues.

        The file then reads as one uninterrupted run. A last line that was cut short by
        a kill is dropped as well. Call it before the first `write`.
        """
        assert self._file is None, "truncate_after comes before the first write"
        self._first_step = step + 1
        path = self.directory / METRICS
        if jax.process_index() != 0 or not path.exists():
            return
        text = path.read_text("utf-8", errors="replace")
        kept = "".join(
            line for line in text.splitlines(keepends=True) if _is_kept(line, step)
        )
        if kept != text:
            write_atomically(path, kept)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> IO[str]:
        file = open(self.directory / METRICS, "a", encoding="utf-8", buffering=1)
        if self.tensorboard:
            # Takes 0.2 seconds, and a run without TensorBoard needs none of it.
            import tensorboardX

            # It warns of every NaN; the metrics themselves tell.
            logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
            # A reader of the events drops earlier ones from `purge_step` on.
            self._events = tensorboardX.SummaryWriter(
                str(self.directory / TENSORBOARD), purge_step=self._first_step
            )
        return file


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
