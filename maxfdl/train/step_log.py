"""Metrics of the steps: fetched one step late, written, and shown."""

import time

import jax

from maxfdl.train.chips import peak_flops
from maxfdl.train.metrics import MetricWriter
from maxfdl.train.program import Program
from maxfdl.train.progress import say, step_line
from maxfdl.train.trainer import Metrics


class StepLog:
    """Reports the steps that are due.

    A step's metrics are fetched when the next step has been handed to the device, so
    that reading them never leaves it idle.
    """

    def __init__(self, program: Program, writer: MetricWriter, first: int, steps: int):
        self._writer = writer
        self._steps = steps
        self._every = program.trainer.log_every
        self._first = first
        self._tokens = program.batch_size * program.sequence_length
        self._flops_of_mfu = _flops_of_mfu(program)
        self._pending: tuple[int, Metrics] | None = None
        self._skipped = 0
        self.restart_clock(first)

    def restart_clock(self, step: int) -> None:
        """Times steps from now on: what came since `step` was no training."""
        self._clock = (step, time.perf_counter())

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step under way and reports those of one before."""
        self.flush()
        is_first = step == self._first + 1
        if is_first or step % self._every == 0 or step == self._steps:
            self._pending = (step, metrics)

    def flush(self) -> None:
        """Reports what is pending; waits for that step to end."""
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        self._report(step, {k: float(v) for k, v in jax.device_get(metrics).items()})

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes metrics of another kind, such as an evaluation's."""
        self._writer.write(step, metrics)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        last_step, last_time = self._clock
        self.restart_clock(step)
        seconds = (self._clock[1] - last_time) / max(step - last_step, 1)
        metrics["step_seconds"] = seconds
        metrics["tokens_per_second"] = self._tokens / seconds
        if self._flops_of_mfu:
            metrics["mfu"] = self._flops_of_mfu / seconds
        self._writer.write(step, metrics)
        left = seconds * (self._steps - step)
        say(step_line(step, self._steps, metrics, left))
        self._say_if_skipped(int(metrics["skipped"]))

    def _say_if_skipped(self, skipped: int) -> None:
        if skipped > self._skipped:
            say(
                f"  {skipped} steps so far changed nothing, for their loss or"
                " gradients were not finite"
            )
        self._skipped = skipped


def _flops_of_mfu(program: Program) -> float | None:
    """Returns the step's FLOPs over those that all chips could do in a second."""
    devices = program.sharding.mesh.devices.flat
    peak = peak_flops(devices[0])
    return None if peak is None else program.model_flops() / (peak * len(devices))
