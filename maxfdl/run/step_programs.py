"""The compiled steps of a run: one, or one for each size of its batches.

The step of the whole batch may come from a file.
"""

import dataclasses
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from maxfdl.experiment import Experiment
from maxfdl.run.executable import Executable
from maxfdl.run.leave import BACKGROUND
from maxfdl.train.program import CompiledStep, Program
from maxfdl.train.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class RunStep:
    """A compiled step and the program that it is of."""

    program: Program
    call: Any  # jax.stages.Compiled: (state, batch) -> (state, metrics)


class StepPrograms:
    """Compiles in the background what comes next."""

    def __init__(
        self,
        experiment: Experiment,
        trainer: Trainer,
        executable: Executable | None = None,
    ):
        self._experiment = experiment
        self._trainer = trainer
        self._executable = executable
        self._background = ThreadPoolExecutor(2, BACKGROUND)
        self._compiling: dict[int, tuple[Program, Future[CompiledStep]]] = {}
        self._now: tuple[int, RunStep] | None = None

    def begin_to_compile(self, step: int) -> None:
        """Begins to compile what `step`, counted from 1, runs."""
        size = self._experiment.batch_size_at(step)
        if size not in self._compiling:
            program = Program(self._trainer, size, self._experiment.sequence_length)
            make = program.compile_step
            if self._executable is not None and size == self._experiment.batch_size:
                make = functools.partial(self._executable.load, program)
            self._compiling[size] = program, self._background.submit(make)

    def at(self, step: int) -> RunStep:
        """Returns what `step` runs; waits for it to be compiled."""
        size = self._experiment.batch_size_at(step)
        if self._now is None or self._now[0] != size:
            self.begin_to_compile(step)
            program, compiling = self._compiling[size]
            self._now = size, RunStep(program, compiling.result().run)
            if size < self._experiment.batch_size:
                self._begin_next(step, size)
        return self._now[1]

    def _begin_next(self, step: int, size: int) -> None:
        while self._experiment.batch_size_at(step) == size:
            step += 1
        if step <= self._experiment.steps:
            self.begin_to_compile(step)

    def in_background(self, function: Callable[[], Any]) -> None:
        self._background.submit(function)

    def close(self) -> None:
        """Lets go of what is not needed any more."""
        self._background.shutdown(wait=False, cancel_futures=True)
