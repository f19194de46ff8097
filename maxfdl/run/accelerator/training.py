"""A few steps of an experiment on one device, for checks to look at."""

import dataclasses

import jax

from maxfdl.experiment import Experiment
from maxfdl.run.benchmark import random_batch
from maxfdl.train.program import CompiledStep, Program
from maxfdl.train.trainer import State


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
      losses: Of each step.
      state: After the last.
      step: The program that ran.
      bytes_in_use: Of the device at the end, state included; None where it does not
        count them.
    """

    losses: list[float]
    state: State
    step: CompiledStep
    bytes_in_use: int | None


def train(experiment: Experiment, steps: int, documents_per_row: int = 1) -> Trained:
    """Trains on one random batch over and over, so that the loss falls."""
    device = jax.devices()[0]
    experiment = dataclasses.replace(experiment, steps=steps)
    trainer = experiment.make_trainer(experiment.make_sharding([device]))
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    compiled = program.compile_step()
    batch = random_batch(experiment, program, documents_per_row)
    state, losses = program.init(), []
    for _ in range(steps):
        state, metrics = compiled.run(state, batch)
        losses.append(float(metrics["loss"]))
    in_use = (device.memory_stats() or {}).get("bytes_in_use")
    return Trained(losses, state, compiled, in_use)


def largest_difference(losses: list[float], expected: list[float]) -> float:
    """Returns the largest relative difference; infinite if a loss is not finite."""
    differences = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
    is_finite = all(each < float("inf") for each in differences)
    return max(differences) if is_finite else float("inf")
