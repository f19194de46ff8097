"""Measuring the compiled step of an experiment."""

import dataclasses
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.data import Synthetic
from maxfdl.experiment import Experiment
from maxfdl.run.chips import peak_flops
from maxfdl.train.loss import Batch
from maxfdl.train.program import CompiledStep, Program
from maxfdl.train.trainer import Metrics, State

_IMPORTED = time.perf_counter()
_DISPATCHES = 200


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some measurements and the range of most, in seconds."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: np.ndarray) -> "Spread":
        return cls(*np.percentile(seconds, [50, 10, 90]).tolist())


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured.

    Args:
      first_step_seconds: From the start of the process to the end of the first step.
      trace_seconds: From Python to what the compiler takes.
      compile_seconds: From there to an executable.
      step_seconds: From the end of one step to the end of the next.
      cpu_seconds_per_step: Of all threads of this process, the median.
      tokens_per_second: Of all devices together, as the next.
      model_tflops_per_second: Recomputation does not count, causal attention half.
      mfu: The same over the peak of the chips; None where that is not known.
      peak_bytes: Of the fullest device.
      peak_bytes_from: `device`, which counted them, or `compiler`, which planned them.
      dispatch_microseconds: Host time of one call of the step, see `dispatch_seconds`.
    """

    first_step_seconds: float
    trace_seconds: float
    compile_seconds: float
    step_seconds: Spread
    cpu_seconds_per_step: float
    tokens_per_second: float
    model_tflops_per_second: float
    mfu: float | None
    peak_bytes: int
    peak_bytes_from: str
    dispatch_microseconds: float


def measure(
    experiment: Experiment,
    *,
    steps: int,
    warmup: int,
    devices: Sequence[jax.Device] | None = None,
) -> Figures:
    """Trains on one random batch that stays on the devices, and times `steps` steps.

    The first step and `warmup` further ones are not among them. `devices`: None takes
    all.

    Raises:
      UserError: For what cannot be run.
    """
    trainer = experiment.make_trainer(experiment.make_sharding(devices))
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    program.check_memory()
    compiled = program.compile_step()
    state = jax.block_until_ready(program.init())
    batch = random_batch(experiment, program)
    state, _ = jax.block_until_ready(compiled.run(state, batch))
    first_step_seconds = seconds_since_process_start()
    for _ in range(warmup):
        state, _ = jax.block_until_ready(compiled.run(state, batch))
    state, wall, cpu = _time_steps(compiled, state, batch, steps)

    step_seconds = Spread.of(wall)
    flops_per_second = program.model_flops() / step_seconds.median
    chip = peak_flops(jax.devices()[0])
    peak = None if chip is None else chip * program.sharding.mesh.size
    peak_bytes, peak_bytes_from = _peak_bytes(compiled)
    return Figures(
        first_step_seconds=first_step_seconds,
        trace_seconds=compiled.trace_seconds,
        compile_seconds=compiled.compile_seconds,
        step_seconds=step_seconds,
        cpu_seconds_per_step=float(np.median(cpu)),
        tokens_per_second=batch["tokens"].size / step_seconds.median,
        model_tflops_per_second=flops_per_second / 1e12,
        mfu=None if peak is None else flops_per_second / peak,
        peak_bytes=peak_bytes,
        peak_bytes_from=peak_bytes_from,
        dispatch_microseconds=1e6 * dispatch_seconds(program, state, batch),
    )


def dispatch_seconds(program: Program, state: State, batch: Batch) -> float:
    """Returns the host's time to call the step, whatever the step computes.

    Calls a function that takes and gives the same arrays in the same places, and
    computes next to nothing: a CPU may run a call's computation before it returns.
    Of many calls, the tenth percentile: other work of the machine only adds to it.
    The state is used up.
    """
    _, metrics = jax.eval_shape(program.trainer.step, state, batch)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        # Without the barrier an output that is an input would not be called for.
        state = jax.lax.optimization_barrier(state)
        touched = sum((rows[0, 0] for rows in batch.values()), jnp.float32(0))
        return state, {
            name: touched.astype(metric.dtype) for name, metric in metrics.items()
        }

    call = program.compile_in_place(step).run
    seconds = []
    for _ in range(_DISPATCHES):
        started = time.perf_counter()
        state, metrics = call(state, batch)
        seconds.append(time.perf_counter() - started)
        # Collectives of many virtual devices block each other if calls queue up.
        jax.block_until_ready(metrics)
    return float(np.percentile(seconds, 10))


def seconds_since_process_start() -> float:
    """Returns the age of this process; where the system does not tell, of this module.

    Exact to a hundredth of a second.
    """
    try:
        with open("/proc/self/stat", encoding="utf-8") as file:
            after_name = file.read().rpartition(")")[2].split()
    except OSError:
        return time.perf_counter() - _IMPORTED
    # Field 22 of the file, in clock ticks since boot; the third comes after the name.
    started = int(after_name[22 - 3]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def random_batch(
    experiment: Experiment, program: Program, documents_per_row: int = 1
) -> dict[str, jax.Array]:
    """Returns a batch of random tokens, on the devices."""
    shares = program.sharding.shares_of_rows()
    data = Synthetic(
        documents_per_row=documents_per_row,
        batch_size=experiment.batch_size,
        sequence_length=experiment.sequence_length,
        seed=experiment.seed,
        process_index=shares.here,
        process_count=shares.count,
        vocab_size=program.trainer.model.network.vocab_size,
    )
    return program.place(data.evaluation(1)[0])


def _time_steps(
    compiled: CompiledStep, state: State, batch: Batch, steps: int
) -> tuple[State, np.ndarray, np.ndarray]:
    """Returns the state after, and wall and CPU seconds from step's end to step's end.

    As in training, a step is handed over before the one before it is waited for.
    """
    ends = []

    def wait_for(metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        ends.append((time.perf_counter(), time.process_time()))

    state, under_way = compiled.run(state, batch)
    for _ in range(steps):
        state, metrics = compiled.run(state, batch)
        wait_for(under_way)
        under_way = metrics
    wait_for(under_way)
    wall, cpu = np.diff(ends, axis=0).T
    return state, wall, cpu


def _peak_bytes(compiled: CompiledStep) -> tuple[int, str]:
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    counted = [each["peak_bytes_in_use"] for each in stats if each]
    if counted:
        return max(counted), "device"
    return compiled.peak_bytes(), "compiler"
