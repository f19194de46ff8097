"""The course of whole runs: batches that grow, goals, and giving up."""

import dataclasses
import functools
import json

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import (
    average_weights,
    batch_ramp_up,
    offload_optimizer,
    offload_parameters,
    stop_at_loss,
)
from maxfdl.optim.schedules import WarmupConstant
from maxfdl.run.directory import RunDirectory
from maxfdl.run.loop import RunOptions, run
from maxfdl.saved_run import read_run
from maxfdl.train.guard import SkipNonFinite
from maxfdl.train.program import Program
from tests import tiny
from tests.layers.families import assert_same_bits


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    monkeypatch.setattr(Program, "init", tiny.begin)


def train(config, path, stop_at=None):
    """Returns the last state and the lines of metrics of a run in the folder `path`."""
    options = RunOptions(
        graph_json=graph.dump_json(config, trust=[__name__]), stop_at=stop_at
    )
    path.mkdir(exist_ok=True)
    experiment = graph.build(graph.validate(config))
    try:
        state = run(experiment, RunDirectory(path), options)
    finally:
        text = (path / "metrics.jsonl").read_text()
    return jax.device_get(state), [json.loads(line) for line in text.splitlines()]


def experiment(*mutations):
    config = tiny.experiment(*mutations)
    config.trainer.log_every = 1
    config.trainer.eval_batches = 1
    config.metrics.tensorboard = False
    config.mesh.fsdp = 1  # of the eight devices, so that a batch of two fits
    config.mesh.data = 1
    config.mesh.tensor = -1
    config.sharding.heads = config.sharding.kv_heads = ()
    return config


@pytest.mark.slow
def test_batches_grow_and_go_on_where_they_stopped(tmp_path):
    ramp = functools.partial(batch_ramp_up, start=4, steps=4)
    config = experiment(ramp, average_weights)
    config.steps = 6
    whole, lines = train(config, tmp_path / "whole")
    steps = [line for line in lines if "loss" in line]
    tokens = np.cumsum([4] * 4 + [8] * 2) * tiny.LENGTH
    assert [line["tokens_seen"] for line in steps] == tokens.tolist()
    for stop_at in (3, None):  # inside a batch of the data
        cut, again = train(config, tmp_path / "cut", stop_at)
    assert_same_bits(cut, whole)
    losses = [[x["loss"] for x in some if "loss" in x] for some in (lines, again)]
    assert losses[0] == losses[1]
    # What is sampled from and exported is the average.
    (tmp_path / "whole" / "config.json").write_text(graph.dump_json(config))
    saved = read_run(tmp_path / "whole")
    average = whole["updates"]["weight_average"]["average"]
    assert saved.step == 6
    assert_same_bits(jax.device_get(saved.variables["params"]), average)


@pytest.mark.slow
def test_a_run_goes_on_from_state_that_lies_on_the_host(tmp_path):
    config = experiment(offload_optimizer, offload_parameters, average_weights)
    config.steps = 4
    config.trainer.eval_every = 2
    whole, lines = train(config, tmp_path / "whole")
    for stop_at in (2, None):
        cut, again = train(config, tmp_path / "cut", stop_at)
    assert_same_bits(cut, whole)
    for name in ("loss", "eval_loss"):
        found, expected = (
            [x[name] for x in some if name in x] for some in (again, lines)
        )
        assert found == expected and np.all(np.isfinite(found))


def test_a_goal_ends_the_run_and_it_stays_ended(tmp_path, capsys):
    config = experiment(functools.partial(stop_at_loss, loss=100.0, every=3))
    state, lines = train(config, tmp_path)
    assert state["step"] == 3 and [x["step"] for x in lines] == [1, 2, 3, 3]
    assert "reached a loss of 100.0 after step 3" in capsys.readouterr().out
    state, again = train(config, tmp_path)
    assert state["step"] == 3 and again == lines
    assert "reached a loss of 100.0 after step 3" in capsys.readouterr().out


@pytest.mark.slow
def test_a_goal_that_is_not_reached_changes_nothing(tmp_path, capsys):
    config = experiment(functools.partial(stop_at_loss, loss=0.1, every=3))
    config.steps = 4
    state, _ = train(config, tmp_path)
    assert state["step"] == 4
    assert "finished 4 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_after_so_many_refused_steps_the_run_gives_up_and_keeps_what_was_good(tmp_path):
    config = experiment()
    # Good for one step, and the same program however long the run is.
    config.optimizer.schedule = fdl.Config(WarmupConstant, peak=1e8)
    config.trainer.guard.stop_after = 3
    with pytest.raises(UserError, match="the last 4 steps, up to step 5, changed noth"):
        train(config, tmp_path / "run")
    config.steps = 1
    first, _ = train(config, tmp_path / "one")
    program = tiny.program(config, 8)
    saved = graph.build(config).checkpoint(directory=tmp_path / "run" / "checkpoints")
    abstract = program.abstract_state()
    state = saved.read(5, {"params": abstract["params"], "guard": abstract["guard"]})
    assert_same_bits(jax.device_get(state["params"]), first["params"])
    assert state["guard"]["skipped"] == 4


@dataclasses.dataclass(frozen=True)
class RefusesSome(SkipNonFinite):
    """Refuses the second step and the third."""

    def init(self):
        return super().init() | {"steps": jnp.zeros((), jnp.int32)}

    def __call__(self, state, step):
        steps = state["steps"] + 1
        accepted = (steps != 2) & (steps != 3)
        return accepted, self._counted(state, accepted) | {"steps": steps}


def test_a_run_that_recovers_in_the_step_under_way_goes_on(tmp_path):
    config = experiment()
    config.steps = 5
    config.trainer.guard = fdl.Config(RefusesSome, stop_after=2)
    state, lines = train(config, tmp_path)
    steps = [line["skipped_in_a_row"] for line in lines if "loss" in line]
    assert state["step"] == 5 and steps == [0, 1, 2, 0, 0]
