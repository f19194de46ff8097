"""The loop of a run: from an experiment to a trained model on disk.

Read in one sitting: prepare, step, log, save, evaluate, and stop in good order.
"""

import contextlib
import dataclasses

import jax

from maxfdl.checkpoint.orbax import import_orbax
from maxfdl.checkpoint.processes import gather
from maxfdl.data import Data, TextData
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.run.directory import RunDirectory
from maxfdl.run.evaluation import Evaluation
from maxfdl.run.executable import Executable
from maxfdl.run.first_state import first_state
from maxfdl.run.look_ahead import LookAhead
from maxfdl.run.profile import Profile
from maxfdl.run.progress import outliving_reader, say
from maxfdl.run.same_data import check_same_data
from maxfdl.run.sample import show_sample
from maxfdl.run.saves import Progress, Saves
from maxfdl.run.signals import StopRequest
from maxfdl.run.step_log import StepLog
from maxfdl.run.step_programs import StepPrograms
from maxfdl.run.watchdog import Watchdog
from maxfdl.train.program import Program
from maxfdl.train.trainer import State


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a command line may ask of a run without making it another experiment.

    Args:
      graph_json: The graph, saved with every checkpoint.
      stop_at: Stop after this step as if interrupted; None runs to the end.
      profile: Which steps to trace; None traces none.
      executable: The step, compiled before; None compiles it.
    """

    graph_json: str
    stop_at: int | None = None
    profile: Profile | None = None
    executable: Executable | None = None


@dataclasses.dataclass(kw_only=True)
class _Course:
    """The parts of a run, and how far it has come.

    Args:
      now: How far it has come.
      first: The step that this start began after.
      last: The step that it ends after, unless it is stopped.
      was_evaluated: Whether an earlier start wrote an evaluation after `first`.
      reached: Whether an evaluation has found the goal reached.
      returns: How often this start has gone back to an earlier checkpoint.
    """

    experiment: Experiment
    options: RunOptions
    program: Program
    data: Data
    steps: StepPrograms
    saves: Saves
    evaluation: Evaluation
    log: StepLog
    watchdog: Watchdog
    now: Progress
    first: int
    last: int
    was_evaluated: bool
    reached: bool = False
    returns: int = 0

    def rescuing(self) -> contextlib.AbstractContextManager:
        """Saves what is trained if anything raises inside, see `Saves.rescuing`."""
        return self.saves.rescuing(self.now, self.first, self.log.flush)

    @property
    def has_given_up(self) -> bool:
        """Whether so many steps in a row changed nothing that it is no use to go on."""
        return self.log.skipped_in_a_row >= self.program.trainer.guard.stop_after


def run(
    experiment: Experiment,
    directory: RunDirectory,
    options: RunOptions,
    stop: StopRequest | None = None,
) -> State:
    """Trains from where `directory` left off, or from the start.

    What can go wrong is looked for before the first step. If something fails after it,
    the state of the last complete step is saved before the error is raised.

    A request to stop ends the loop after the step under way; the state is saved, and
    the same command continues it. Without `stop`, nobody asks for it.

    Raises:
      UserError: For what cannot be run.
    """
    stop = stop or StopRequest()
    with stop.training(), contextlib.ExitStack() as closing:
        course = _prepare(experiment, directory, options, closing, stop)
        with course.rescuing(), outliving_reader(stop.reader_has_gone):
            _train(course, stop)
    _conclude(course, stop, directory)
    return course.now.state


def _prepare(
    experiment: Experiment,
    directory: RunDirectory,
    options: RunOptions,
    closing: contextlib.ExitStack,
    stop: StopRequest,
) -> _Course:
    """Makes the parts of a run, and sees that each can do its work.

    The step compiles meanwhile, which leaves Python to the rest, unless all steps are
    done.
    """
    trainer = experiment.make_trainer(experiment.make_sharding())
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    program.check_memory()
    if options.executable is not None:
        options.executable.check(program.sharding.mesh)
    say(_introduction(experiment, program, directory))
    data = experiment.make_data(trainer.model)
    batches = experiment.make_batches(data)
    check_same_data(batches)
    saves = Saves.of(experiment, directory, options.graph_json)
    last = min(experiment.steps, options.stop_at or experiment.steps)
    saved = saves.newest()
    steps = StepPrograms(experiment, trainer, options.executable)
    closing.callback(steps.close)
    if saved is None or saved < last:
        steps.begin_to_compile((saved or 0) + 1)
    if experiment.checkpoint is not None:
        steps.in_background(import_orbax)  # before the first save needs it
    restored = None
    if saved is not None:
        restored = saves.restore(saved, program.as_saved, batches)
    if restored is None:
        state = first_state(program, experiment.init_from, experiment.resume_from)
    else:
        state = program.resumed(restored)
    first = int(state["step"])
    if jax.process_count() > 1:
        batches = LookAhead(batches, last - first, stop.after_failure)
    now = Progress(first, state, batches)
    if isinstance(data, TextData) and jax.process_index() == 0:
        directory.write_tokenizer(data.tokenizer)

    watchdog = Watchdog(experiment.hang_seconds)
    closing.callback(watchdog.close)
    evaluation = Evaluation(program, data, experiment.steps)
    writer = experiment.metrics(directory=directory.path)
    closing.callback(writer.close)
    if first < last:
        evaluation.read_batches()
        saves.check_room(program.abstract_state())
    # The first process alone reads and writes metrics.
    written = gather(sorted(writer.truncate_after(first)))[0]
    if first < last:
        writer.open()
        if first:
            say(f"continuing from step {first}")
    return _Course(
        experiment=experiment,
        options=options,
        program=program,
        data=data,
        steps=steps,
        saves=saves,
        evaluation=evaluation,
        log=StepLog(program, writer, first, experiment, batches),
        watchdog=watchdog,
        now=now,
        first=first,
        last=last,
        was_evaluated="eval_loss" in written,
    )


def _train(course: _Course, stop: StopRequest) -> None:
    """Takes the steps, up to the last one, a request to stop, or the goal."""
    now, log, saves = course.now, course.log, course.saves
    profile, shares_cores = course.options.profile, _shares_cores(course.program)
    if now.step and course.evaluation.due(now.step):
        # Again, for the goal; or at last, if the save was all that came before a kill.
        if course.program.trainer.goal or not course.was_evaluated:
            _evaluate(course, write=not course.was_evaluated)
    while now.step < course.last and not (stop.reached(now.step) or course.reached):
        step = now.step + 1
        run_step = course.steps.at(step)
        with course.watchdog.step(step):
            batch = run_step.program.place(next(now.batches))
            if profile:
                profile.before(step, now.state)
            now.state, metrics = run_step.call(now.state, batch)
            now.step = step
            stop.began()
            if shares_cores:
                jax.block_until_ready(metrics)
            if profile:
                profile.after(step, now.state)
            log.add(step, metrics)
            if course.has_given_up or step == course.last:
                log.flush()  # the step under way may be a good one, or the last bad one
        if course.has_given_up:
            if _has_gone_back(course):
                continue
            break
        saves.save_locally(now)
        if saves.due(step):
            saves.save(now)
        if step < course.last and course.evaluation.due(step):
            log.flush()
            _evaluate(course, write=True)
    log.flush()
    if profile:
        profile.end(now.state)
    saves.save(now)
    saves.close()
    if stop.failure is not None:
        raise stop.failure
    if course.first < now.step == course.last and not course.has_given_up:
        if course.evaluation.due(now.step):
            _evaluate(course, write=True)


def _has_gone_back(course: _Course) -> bool:
    """Goes back to an earlier checkpoint, if the guard asks for it and there is one."""
    now, program = course.now, course.program
    policy = program.trainer.guard.then
    if policy is None or course.returns == policy.times:
        return False
    left_at = now.step
    first_rejected = left_at - course.log.skipped_in_a_row + 1
    before = first_rejected - policy.steps
    state = course.saves.restore_before(before, program.as_saved)
    if state is None:
        say(f"no checkpoint is older than step {before}: the run cannot go back")
        return False
    now.state = program.resumed(state)
    now.step = int(now.state["step"])
    course.returns += 1
    if isinstance(now.batches, LookAhead):
        now.batches.expect(left_at - now.step)
    course.log.go_back(now.step)
    say(
        f"went back from step {left_at} to step {now.step}; the data goes on, so that"
        " what came between is passed over"
    )
    return True


def _evaluate(course: _Course, *, write: bool) -> None:
    """Evaluates the current state, and sees whether the goal is reached."""
    step, goal = course.now.step, course.program.trainer.goal
    found = course.evaluation(course.now.state)
    loss, per_byte = found["eval_loss"], found["eval_nats_per_byte"]
    say(f"held out after step {step}: loss {loss:.4f}, {per_byte:.4f} nats per byte")
    if write:
        course.log.write(step, found)
    course.log.restart_clock(step)
    course.reached = bool(goal and goal.is_reached(found))


def _conclude(course: _Course, stop: StopRequest, directory: RunDirectory) -> None:
    """Says how the run ended, and shows a sample if it did not end too early."""
    step, steps = course.now.step, course.experiment.steps
    if course.has_given_up:
        raise UserError(_gave_up(course))
    if step < steps and not course.reached:
        why = stop.requested or f"--stop_at={course.options.stop_at}"
        how = course.saves.how_to_continue(why)
        return say(f"stopped by {why} after step {step}; {how}")
    if step >= steps and step == course.first:
        more = "" if step == steps else f", and this graph asks for {steps}"
        return say(
            f"finished {step} steps in an earlier start{more}; everything is in"
            f" {directory.path}; set steps higher to go on, or give another --run_dir"
            " to train anew"
        )
    with course.rescuing():
        show_sample(
            course.program, course.data, course.now.state, course.experiment.seed
        )
    how = f"finished {step} steps"
    if step < steps:
        goal = course.program.trainer.goal
        assert goal is not None
        how = f"reached a loss of {goal.loss} after step {step}"
    say(f"{how}; everything is in {directory.path}")


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


def _gave_up(course: _Course) -> str:
    step, in_a_row = course.now.step, course.log.skipped_in_a_row
    kept = "nothing was saved"
    if course.experiment.checkpoint is not None:
        kept = f"the state before them is saved as step {step}"
    return (
        f"the last {in_a_row} steps, up to step {step}, changed nothing, for their"
        f" loss, gradients or parameters were not finite or far too large; {kept}. Look"
        " at the data, or go on in another --run_dir with init_from=<this one> and a"
        " lower optimizer.schedule.peak."
    )
