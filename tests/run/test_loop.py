"""What a run does when something fails: nothing that was trained is lost."""

import collections
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.data.stream import SavedBatches
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.mutations import go_back
from maxfdl.run.directory import RunDirectory
from maxfdl.run.evaluation import Evaluation
from maxfdl.run.loop import RunOptions, run
from maxfdl.run.signals import StopRequest
from maxfdl.run.step_log import StepLog
from maxfdl.run.step_programs import StepPrograms
from maxfdl.run.watchdog import Watchdog
from maxfdl.train.metrics import MetricWriter
from maxfdl.train.program import Program
from tests import tiny
from tests.layers.families import assert_same_bits

STEPS, BAD = 6, 4
next_batch = SavedBatches.__next__


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """All runs here are of one program on one device, compiled for the first."""
    made = {}

    def once(method, look=lambda x: x):
        function = getattr(Program, method)

        def call(self):
            if method not in made:
                made[method] = function(self)
            return look(made[method])

        patch.setattr(Program, method, call)

    with pytest.MonkeyPatch.context() as patch:
        once("compile_step")
        once("compile_evaluation")
        once("init", look=lambda state: jax.tree.map(jnp.copy, state))
        make = Experiment.make_sharding
        one = jax.devices()[:1]
        patch.setattr(Experiment, "make_sharding", lambda self: make(self, one))
        yield


def experiment(**trainer):
    config = tiny.experiment()
    config.steps, config.metrics.tensorboard = STEPS, False
    config.trainer.log_every = config.trainer.eval_batches = 1
    for name, value in trainer.items():
        setattr(config.trainer, name, value)
    return config


def train(path, config=None, **options):
    """Returns the last state of a run in the folder `path`."""
    config = config or experiment()
    options = RunOptions(graph_json=graph.dump_json(config), **options)
    made = graph.build(graph.validate(config))
    return jax.device_get(run(made, RunDirectory(path), options))


def lines(path, name="loss"):
    """Returns the steps whose metrics name something, and the values."""
    text = (path / "metrics.jsonl").read_text()
    found = map(json.loads, text.splitlines())
    return [(line["step"], line[name]) for line in found if name in line]


def steps_on_disk(path):
    folders = (path / "checkpoints").glob("[0-9]*")
    return sorted(int(folder.name) for folder in folders)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the last state of a run that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole")
    return path, train(path)


def failing_at(step, error):
    """Returns a stand-in for a method that raises at its `step`th call, ever after."""

    def instead_of(function):
        calls = 0

        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls >= step:
                raise error
            return function(*args, **kwargs)

        return call

    return instead_of


def test_a_run_whose_output_nobody_reads_stops_and_saves(tmp_path, monkeypatch):
    said = []

    def print_to_a_reader_that_goes(text, **_):
        said.append(text)
        if text.startswith(f"step {BAD}/") and not discarded:
            raise BrokenPipeError

    discarded: list[bool] = []
    monkeypatch.setattr("builtins.print", print_to_a_reader_that_goes)
    monkeypatch.setattr("maxfdl.run.progress.discard", lambda _: discarded.append(True))
    config, stop = experiment(), StopRequest(leave=pytest.fail)
    options = RunOptions(graph_json=graph.dump_json(config))
    run(graph.build(config), RunDirectory(tmp_path), options, stop)
    # The line of a step comes when the next one is under way.
    assert discarded and stop.exit_code == 141
    assert steps_on_disk(tmp_path) == [BAD + 1]
    assert [step for step, _ in lines(tmp_path)] == list(range(1, BAD + 2))
    assert said[-1].startswith(f"stopped by SIGPIPE after step {BAD + 1}; ")


def batches_that_fail(patch, error):
    patch.setattr(SavedBatches, "__next__", failing_at(BAD, error)(next_batch))


def evaluation_that_fails(patch, error):
    patch.setattr(Evaluation, "due", lambda self, step: step in (BAD - 1, STEPS))
    patch.setattr(Evaluation, "__call__", failing_at(1, error)(Evaluation.__call__))


def writer_that_fails(patch, error):
    # A line is written when the next step is under way.
    patch.setattr(MetricWriter, "write", failing_at(BAD - 2, error)(MetricWriter.write))


FAILURES = [batches_that_fail, evaluation_that_fails, writer_that_fails]


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
def test_what_was_trained_is_saved_before_an_error_is_told(whole, tmp_path, fail):
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, UserError("line 1701 holds null."))
        with pytest.raises(UserError) as failure:
            train(tmp_path)
    saved = f"The state after step {BAD - 1} is saved in {tmp_path}/checkpoints;"
    assert str(failure.value) == (
        f"line 1701 holds null. {saved} the same command goes on from there."
    )
    assert steps_on_disk(tmp_path) == [BAD - 1]
    expected, state = whole
    assert_same_bits(train(tmp_path), state)
    for name in ("loss", "eval_loss"):
        found = dict(lines(tmp_path, name))
        missing = {2, 3} if fail is writer_that_fails and name == "loss" else set()
        assert {**dict(lines(expected, name)), **found} == dict(lines(expected, name))
        assert dict(lines(expected, name)).keys() - found.keys() <= missing


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
def test_a_bug_keeps_its_traceback_and_what_was_trained_is_saved(tmp_path, fail):
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, ZeroDivisionError("a bug"))
        with pytest.raises(ZeroDivisionError, match="^a bug") as failure:
            train(tmp_path)
    (note,) = failure.value.__notes__
    assert note.startswith(f"The state after step {BAD - 1} is saved in {tmp_path}")
    assert steps_on_disk(tmp_path) == [BAD - 1]


def test_the_first_error_is_told_even_if_the_state_cannot_be_saved(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        batches_that_fail(patch, UserError("line 1701 holds null."))
        full = OSError(28, "No space left on device")
        patch.setattr(Checkpointer, "_open_writer", failing_at(1, full)(None))
        with pytest.raises(UserError) as failure:
            train(tmp_path)
    assert str(failure.value) == (
        f"line 1701 holds null. The state after step {BAD - 1} could not be saved:"
        f" Checkpoint step {BAD - 1} cannot be written to {tmp_path}/checkpoints (No"
        " space left on device); make room there or give another directory with"
        " --run_dir."
    )


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "make_batches", lambda self, data: iter([]))
        with pytest.raises(StopIteration):
            train(tmp_path)
    assert steps_on_disk(tmp_path) == []


def test_a_save_comes_before_the_evaluation_and_the_sample(tmp_path):
    config = experiment(eval_every=2, sample_tokens=4)
    config.checkpoint.every_steps = 2
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        save, evaluate = Checkpointer.save, Evaluation.__call__

        def saving(self, step, *args):
            seen.append(f"save {step}")
            save(self, step, *args)

        def evaluating(self, state):
            seen.append(f"evaluate {int(state['step'])}")
            if state["step"] == STEPS:
                assert max(steps_on_disk(tmp_path)) == STEPS
            return evaluate(self, state)

        patch.setattr(Checkpointer, "save", saving)
        patch.setattr(Evaluation, "__call__", evaluating)
        patch.setattr("maxfdl.run.sample.generate", failing_at(1, UserError("no."))(0))
        with pytest.raises(UserError, match=r"^no\. The state after step 6 is saved"):
            train(tmp_path, config)
    expected = [f"{what} {n}" for n in (2, 4, 6) for what in ("save", "evaluate")]
    assert list(dict.fromkeys(seen)) == expected


def test_an_evaluation_that_a_kill_cut_short_is_made_up_for(whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt = failing_at(1, KeyboardInterrupt())
        patch.setattr(Evaluation, "__call__", interrupt(Evaluation.__call__))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert steps_on_disk(tmp_path) == [STEPS] and lines(tmp_path, "eval_loss") == []
    for _ in range(2):  # once, and not again
        train(tmp_path)
        assert lines(tmp_path, "eval_loss") == lines(whole[0], "eval_loss")


def spoiled(patch, spoil):
    """Batches of which some are spoiled; where that gives None, the next is taken."""
    calls = itertools.count(1)

    def next_of(self):
        batch = None
        while batch is None:
            batch = spoil(next(calls), next_batch(self))
        return batch

    patch.setattr(SavedBatches, "__next__", next_of)


def is_bad(call):
    return BAD - 1 <= call < BAD + 3


def without_weight(call, batch):
    weights = batch["weights"]
    return {**batch, "weights": weights * np.nan} if is_bad(call) else batch


def test_a_run_goes_back_and_passes_over_the_data_that_it_could_not_take(
    tmp_path, capsys
):
    config = go_back(experiment(), steps=1)
    config.trainer.guard.stop_after, config.checkpoint.every_steps = 3, 1
    config.checkpoint.keep = 9
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch, without_weight)
        state = train(tmp_path / "went_back", config)
    said = capsys.readouterr().out
    assert "went back from step 6 to step 1; the data goes on" in said

    # Step 2 is taken anew, with the batch that comes after the bad ones.
    with pytest.MonkeyPatch.context() as patch:
        passed_over = lambda call: call == 2 or is_bad(call)  # noqa: E731
        spoiled(patch, lambda call, batch: None if passed_over(call) else batch)
        expected = train(tmp_path / "expected", experiment())
    assert_same_bits(state, expected)
    found = lines(tmp_path / "went_back")
    assert found == lines(tmp_path / "expected")


def test_a_run_that_cannot_go_back_ends_as_ever(tmp_path, capsys):
    config = go_back(experiment())
    config.trainer.guard.stop_after = 3
    with pytest.MonkeyPatch.context() as patch:
        spoiled(patch, without_weight)
        with pytest.raises(UserError, match="the last 4 steps, up to step 6, changed"):
            train(tmp_path, config)
    assert "no checkpoint is older than step 3" in capsys.readouterr().out


def test_a_run_goes_back_only_so_often(tmp_path):
    config = go_back(experiment(), times=2)
    config.trainer.guard.stop_after, config.checkpoint.every_steps = 2, 1
    with pytest.MonkeyPatch.context() as patch:
        spoiled(
            patch,
            lambda call, batch: (
                {**batch, "weights": batch["weights"] * np.nan}
                if call >= BAD
                else batch
            ),
        )
        with pytest.raises(UserError, match="the last 3 steps, up to step 6, changed"):
            train(tmp_path, config)


def test_the_watchdog_watches_the_steps_and_nothing_else(tmp_path):
    dog, seen = Watchdog(None), collections.defaultdict(set)

    def noting(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            seen[owner].add(dog.is_watching)
            return function(*args, **kwargs)

        patch.setattr(owner, name, call)

    config = experiment(eval_every=2)
    config.checkpoint.every_steps = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maxfdl.run.loop.Watchdog", lambda seconds: dog)
        noting(StepPrograms, "at")  # waits for the step to be compiled
        noting(Evaluation, "__call__")
        noting(Checkpointer, "save")
        noting(StepLog, "add")  # waits for the step before
        train(tmp_path, config)
    assert seen.pop(StepLog) == {True}
    assert seen == {each: {False} for each in (StepPrograms, Evaluation, Checkpointer)}


@pytest.mark.parametrize("trainer", [{"eval_batches": 1}, {"sample_tokens": 4}])
def test_an_evaluation_that_cannot_be_made_is_refused_before_the_first_step(
    tmp_path, trainer
):
    config = experiment(**{"eval_batches": 0} | trainer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "maxfdl.data.Synthetic.evaluation",
            failing_at(1, UserError("nothing is held out."))(None),
        )
        with pytest.raises(UserError, match="^nothing is held out.$"):
            train(tmp_path, config)
    assert not RunDirectory(tmp_path).has_results()


def test_files_that_cannot_be_written_are_refused_before_the_first_step(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where a folder belongs")
    with pytest.raises(UserError, match="Checkpoints cannot be written to"):
        train(tmp_path)
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="Metrics cannot be written to"):
        train(tmp_path)
    assert steps_on_disk(tmp_path) == []


def test_weights_that_are_not_finite_are_no_weights_to_start_from(whole, tmp_path):
    state = jax.tree.map(np.copy, whole[1])
    state["params"]["head"]["kernel"][0, 0] = np.nan
    checkpointer = Checkpointer(directory=tmp_path / "bad" / "checkpoints")
    checkpointer.save(1, jax.device_put(state), NoData(), "{}", allow_non_finite=True)
    checkpointer.close()
    config = experiment()
    config.init_from = str(tmp_path / "bad")
    with pytest.raises(UserError, match="params.head.kernel holds values that are not"):
        train(tmp_path / "run", config)


class NoData:
    def get_state(self):
        return 0
