"""Metrics of the steps: fetched one step late, written, and shown."""

import time
from typing import Any

import jax
import numpy as np

from maxfdl.experiment import Experiment
from maxfdl.run.bad_documents import count_bad_documents
from maxfdl.run.chips import peak_flops
from maxfdl.run.progress import say, step_line
from maxfdl.train.metrics import MetricWriter
from maxfdl.train.program import Program
from maxfdl.train.trainer import Metrics


class StepLog:
    """Reports the steps that are due.

    A step's metrics are fetched when the next step has been handed to the device, so
    that reading them never leaves it idle.
    """

    def __init__(
        self,
        program: Program,
        writer: MetricWriter,
        first: int,
        experiment: Experiment,
        batches: Any,
    ):
        self._writer = writer
        self._batches = batches
        self._experiment = experiment
        self._steps = experiment.steps
        self._trainer = program.trainer
        self._every = program.trainer.log_every
        self._first = first
        self._mfu_per_token = _mfu_per_token(program)
        self._pending: tuple[int, Metrics] | None = None
        self._bad_documents = 0
        self._skipped = 0
        self.skipped_in_a_row = 0
        """Steps up to the last one fetched that the guard refused."""
        self.restart_clock(first)

    def restart_clock(self, step: int) -> None:
        """Times steps from now on: what came since `step` was no training."""
        self._clock = (step, time.perf_counter())

    def go_back(self, step: int) -> None:
        """Forgets what was reported after `step`."""
        self._writer.close()
        self._writer.truncate_after(step)
        self._writer.open()
        self.skipped_in_a_row = self._skipped = 0
        self.restart_clock(step)

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step under way and reports those of one before."""
        self.flush()
        self._pending = (step, metrics)
        if self._batches.skip_bad and self._is_due(step):
            # Here, for all processes take part, and all of them come here.
            self._bad_documents = count_bad_documents(
                self._batches.bad_documents, self._batches.skip_bad
            )

    def flush(self) -> None:
        """Reports what is pending, if it is due; waits for that step to end."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        if self._is_due(step):
            values = self._trainer.reported(step, _fetched(metrics))
            self.skipped_in_a_row = int(values["skipped_in_a_row"])
            self._report(step, values)
        elif metrics["skipped_in_a_row"].is_fully_addressable:
            least = np.min(jax.device_get(metrics["skipped_in_a_row"]))
            self.skipped_in_a_row = int(least)

    def _is_due(self, step: int) -> bool:
        is_first = step == self._first + 1
        return is_first or step % self._every == 0 or step == self._steps

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes metrics of another kind, such as an evaluation's."""
        self._writer.write(step, metrics)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        last_step, last_time = self._clock
        self.restart_clock(step)
        seconds = self._clock[1] - last_time
        seen = self._experiment.tokens_before(step + 1)
        speed = (seen - self._experiment.tokens_before(last_step + 1)) / seconds
        seconds /= max(step - last_step, 1)
        metrics |= {
            "tokens_seen": seen,
            "step_seconds": seconds,
            "tokens_per_second": speed,
        }
        if self._batches.skip_bad:
            metrics["bad_documents"] = self._bad_documents
        if self._mfu_per_token:
            metrics["mfu"] = self._mfu_per_token * speed
        self._writer.write(step, metrics)
        left = seconds * (self._steps - step)
        say(step_line(step, self._steps, metrics, left))
        self._say_if_skipped(int(metrics["skipped"]))

    def _say_if_skipped(self, skipped: int) -> None:
        if skipped > self._skipped:
            say(
                f"  {skipped} steps so far changed nothing, for their loss,"
                " gradients or parameters were not finite or far too large"
            )
        self._skipped = skipped


def _fetched(metrics: Metrics) -> Any:
    """Returns metrics in the memory of the host: of all processes, if each has some."""
    if all(value.is_fully_addressable for value in metrics.values()):
        return jax.device_get(metrics)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(metrics, tiled=True)


def _mfu_per_token(program: Program) -> float | None:
    """Returns the FLOPs of a token over those that all chips could do in a second."""
    devices = program.sharding.mesh.devices.flat
    peak = peak_flops(devices[0])
    if peak is None:
        return None
    tokens = program.batch_size * program.sequence_length
    return program.model_flops() / tokens / (peak * len(devices))
