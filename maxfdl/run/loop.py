"""The loop of a run: from an experiment to a trained model on disk.

Read in one sitting: prepare, step, log, evaluate, save, and stop in good order.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np

from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.checkpoint.load import import_orbax
from maxfdl.data import Synthetic, TextData
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.inference import generate
from maxfdl.run.directory import RunDirectory
from maxfdl.run.evaluation import Evaluation
from maxfdl.run.first_state import first_state
from maxfdl.run.profile import Profile
from maxfdl.run.progress import say
from maxfdl.run.same_data import check_same_data
from maxfdl.run.signals import StopRequest
from maxfdl.run.step_log import StepLog
from maxfdl.run.step_programs import StepPrograms
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command line may ask of a run without making it another experiment.

    Args:
      graph_json: The graph, saved with every checkpoint.
      stop_at: Stop after this step as if interrupted; None runs to the end.
      profile: Which steps to trace; None traces none.
    """

    graph_json: str
    stop_at: int | None = None
    profile: Profile | None = None


def run(
    experiment: Experiment,
    directory: RunDirectory,
    options: RunOptions,
    stop: StopRequest | None = None,
) -> State:
    """Trains from where `directory` left off, or from the start.

    A request to stop ends the loop after the step under way; the state is saved, and
    the same command continues it. Without `stop`, nobody asks for it.

    Raises:
      UserError: For what cannot be run.
    """
    stop = stop or StopRequest()
    with stop.training(), contextlib.ExitStack() as at_end:
        trainer = experiment.make_trainer(experiment.make_sharding())
        program = Program(trainer, experiment.batch_size, experiment.sequence_length)
        say(_introduction(experiment, program, directory))
        data = experiment.make_data(trainer.model)
        checkpointer = _make_checkpointer(experiment, directory)
        last = min(experiment.steps, options.stop_at or experiment.steps)
        batches = experiment.make_batches(data)
        check_same_data(batches)
        steps = StepPrograms(experiment, trainer)
        state = _prepare(program, steps, batches, checkpointer, last, experiment)
        if isinstance(data, TextData) and jax.process_index() == 0:
            directory.write_tokenizer(data.tokenizer)
        first = int(state["step"])
        evaluation = Evaluation(program, data, experiment.steps)
        if first < last:
            evaluation.read_batches()
        if 0 < first < last:
            say(f"continuing from step {first}")

        writer = experiment.metrics(directory=directory.path)
        at_end.callback(writer.close)
        writer.truncate_after(first)
        log = StepLog(program, writer, first, experiment, batches)
        goal, reached = trainer.goal, False
        profile = options.profile
        shares_cores = _shares_cores(program)
        step = first
        if goal and first and evaluation.due(first):
            reached = goal.is_reached(_evaluated(evaluation, state, first))
        while step < last and not (stop.reached(step) or reached):
            step += 1
            run_step = steps.at(step)
            batch = run_step.program.place(next(batches))
            if profile:
                profile.before(step, state)
            state, metrics = run_step.call(state, batch)
            stop.began()
            if shares_cores:
                jax.block_until_ready(metrics)
            if profile:
                profile.after(step, state)
            log.add(step, metrics)
            if log.skipped_in_a_row >= trainer.guard.stop_after:
                log.flush()  # the step under way may be a good one
                if log.skipped_in_a_row >= trainer.guard.stop_after:
                    break
            if evaluation.due(step):
                log.flush()
                found = _evaluated(evaluation, state, step)
                log.write(step, found)
                log.restart_clock(step)
                reached = bool(goal and goal.is_reached(found))
            if checkpointer and checkpointer.wants(step):
                checkpointer.save(step, state, batches, options.graph_json)
        log.flush()
        if profile:
            profile.end(state)
        if checkpointer:
            if step:
                checkpointer.save(step, state, batches, options.graph_json)
            checkpointer.close()
        steps.close()

    if log.skipped_in_a_row >= trainer.guard.stop_after:
        raise UserError(_gave_up(log.skipped_in_a_row, step, checkpointer))
    if goal and reached and step < experiment.steps:
        _show_sample(program, data, state, experiment)
        say(
            f"reached a loss of {goal.loss} after step {step}; everything is in"
            f" {directory.path}"
        )
    elif step < experiment.steps:
        why = stop.requested or f"--stop_at={options.stop_at}"
        how = _how_to_continue(checkpointer, why)
        say(f"stopped by {why} after step {step}; {how}")
    elif first == step:
        say(
            f"finished {step} steps in an earlier start; everything is in"
            f" {directory.path}; give another --run_dir to train anew"
        )
    else:
        _show_sample(program, data, state, experiment)
        say(f"finished {step} steps; everything is in {directory.path}")
    return state


def _introduction(
    experiment: Experiment, program: Program, directory: RunDirectory
) -> str:
    """Returns one line on what is about to run, and where."""
    parameters = jax.tree.leaves(program.trainer.model.parameters())
    devices = program.sharding.mesh.devices.flat
    tokens = experiment.batch_size * experiment.sequence_length
    return (
        f"{experiment.name}: {sum(each.size for each in parameters):,} parameters,"
        f" {experiment.steps:,} steps of {tokens:,} tokens, on {len(devices)} x"
        f" {devices[0].device_kind}, into {directory.path}"
    )


def _shares_cores(program: Program) -> bool:
    """Returns whether the devices are parts of one CPU, as in tests.

    Such devices must not run ahead: those in a later step hold the threads that
    collectives of an earlier one wait for, until XLA aborts.
    """
    devices = program.sharding.mesh.local_devices
    return len(devices) > 1 and devices[0].platform == "cpu"


def _make_checkpointer(experiment, directory) -> Checkpointer | None:
    if experiment.checkpoint is None:
        return None
    return experiment.checkpoint(directory=directory.checkpoints)


def _prepare(
    program: Program,
    steps: StepPrograms,
    batches: Any,
    checkpointer: Checkpointer | None,
    last: int,
    experiment: Experiment,
) -> State:
    """Returns the first state, and puts the batches where it left off.

    The state is the newest that is saved here, else that of `init_from`, else fresh.
    The step compiles meanwhile, which leaves Python to the rest, unless all steps up to
    `last` are done.
    """
    saved = checkpointer.latest() if checkpointer else None
    if saved is None or saved < last:
        steps.begin_to_compile((saved or 0) + 1)
    if checkpointer:
        steps.in_background(import_orbax)  # before the first save needs it
    if checkpointer is None or saved is None:
        return first_state(program, experiment.init_from)
    return checkpointer.restore(saved, program.abstract_state(), batches)


def _evaluated(evaluation: Evaluation, state: State, step: int) -> dict[str, float]:
    metrics = evaluation(state)
    loss, per_byte = metrics["eval_loss"], metrics["eval_nats_per_byte"]
    say(f"held out after step {step}: loss {loss:.4f}, {per_byte:.4f} nats per byte")
    return metrics


def _gave_up(in_a_row: int, step: int, checkpointer: Checkpointer | None) -> str:
    kept = "nothing was saved"
    if checkpointer is not None:
        kept = f"the state before them is saved as step {step}"
    return (
        f"the last {in_a_row} steps, up to step {step}, changed nothing, for their loss"
        f" or gradients were not finite, or spikes; {kept}. Look at the data, or go on"
        " in another --run_dir with init_from=<this one> and a lower"
        " optimizer.schedule.peak."
    )


def _how_to_continue(checkpointer: Checkpointer | None, why: str) -> str:
    if checkpointer is None:
        return "nothing was saved, for this experiment has no checkpoint"
    without = f" without {why}" if why.startswith("--") else ""
    return f"run the same command{without} to continue"


def _show_sample(
    program: Program, data: TextData | Synthetic, state: State, experiment: Experiment
) -> None:
    """Prints what the model writes after the beginning of a held-out row."""
    num_tokens = min(program.trainer.sample_tokens, program.sequence_length // 2)
    if not num_tokens or jax.process_count() > 1:
        return
    row: Any = data.evaluation(1)[0]["tokens"][0]
    prompt = row[: program.sequence_length - num_tokens]
    variables = jax.tree.map(
        lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")),
        program.evaluated(state),
    )
    (drawn,) = generate(
        program.trainer.model,
        variables,
        [prompt],
        max_new_tokens=num_tokens,
        temperature=0.8,
        seed=experiment.seed,
    )
    decode = data.tokenizer.decode
    shown = decode(np.asarray(prompt)[-num_tokens:])
    say(f"--- held-out text ---\n{shown}\n--- the model goes on ---\n{decode(drawn)}")
