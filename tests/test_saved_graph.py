"""Which graph a run has, by its config and by its checkpoints."""

import jax.numpy as jnp
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.run.directory import RunDirectory
from maxfdl.saved_graph import differences, saved_graph
from tests import tiny


class Data:
    def get_state(self):
        return 0


def with_steps(steps):
    config = tiny.experiment()
    config.steps = steps
    return config


@pytest.fixture
def make_run(tmp_path):
    """Returns a function that makes a run of graphs: of its config, of its steps."""

    def make(config, **saved):
        run = RunDirectory(tmp_path)
        if config is not None:
            text = graph.dump_json(config)
            run.write(config_json=text, config_text="", command="")
        checkpointer = Checkpointer(directory=run.checkpoints)
        for step, cfg in saved.items():
            number = int(step.removeprefix("step"))
            state = {"step": jnp.int32(number)}
            checkpointer.save(number, state, Data(), graph.dump_json(cfg))
        checkpointer.close()
        return run

    return make


def test_a_directory_without_a_run_has_none(make_run):
    assert saved_graph(make_run(None)) is None


def test_config_and_checkpoints_may_agree(make_run):
    config = with_steps(20)
    assert saved_graph(make_run(config, step1=config, step2=config)) == config


@pytest.mark.parametrize("steps", [("step1",), ("step1", "step2")])
def test_without_a_config_the_checkpoints_tell(make_run, steps):
    config = with_steps(20)
    assert saved_graph(make_run(None, **dict.fromkeys(steps, config))) == config


def test_a_step_whose_record_is_damaged_tells_nothing(make_run):
    run = make_run(None, step1=with_steps(20), step2=with_steps(20))
    (run.checkpoints / "2" / "_CHECKPOINT_METADATA").write_text("{")
    assert saved_graph(run) == with_steps(20)


def test_a_config_of_another_run_is_refused(make_run):
    run = make_run(with_steps(30), step1=with_steps(20), step2=with_steps(20))
    with pytest.raises(UserError) as error:
        saved_graph(run)
    assert str(error.value) == (
        f"{run.path}: config.json and checkpoints/2 are graphs of two runs; put the"
        " right config.json back, or delete it (the checkpoints hold the graph, too),"
        " or move checkpoints/2 out of the directory. From the one to the other:\n"
        "  ~ steps: 30 -> 20"
    )


@pytest.mark.parametrize("has_config", [False, True])
def test_a_step_of_another_run_is_refused(make_run, has_config):
    config = with_steps(20) if has_config else None
    run = make_run(config, step1=with_steps(30), step2=with_steps(20))
    message = "and checkpoints/1 are graphs of two runs; .*move checkpoints/1 out"
    with pytest.raises(UserError, match=message):
        saved_graph(run)


def test_what_a_run_may_change_makes_no_other_run(make_run):
    first, second = graph.resolve("experiments.llama2_nnx"), None
    second = graph.set_value(graph.copy(first), "data.skip_bad", "3")
    assert graph.diff(first, second) and not differences(first, second)
    assert saved_graph(make_run(second, step1=first)) == second


def test_a_config_that_cannot_be_read_is_one_sentence(make_run):
    run = make_run(with_steps(20))
    (run.path / "config.json").write_text("{")
    with pytest.raises(UserError, match=f"{run.path}/config.json: .*not a saved graph"):
        saved_graph(run)
    (run.path / "config.json").unlink()
    (run.path / "config.json").mkdir()
    with pytest.raises(UserError, match="must be a file, but it is a folder"):
        saved_graph(run)
