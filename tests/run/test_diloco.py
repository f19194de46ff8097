"""Runs of DiLoCo: through the loop, its checkpoints, its log and its evaluation."""

import json

import jax
import pytest

from maxfdl import graph
from maxfdl.experiment import Experiment
from maxfdl.mutations import use_diloco
from maxfdl.run.directory import RunDirectory
from maxfdl.run.loop import RunOptions, run
from maxfdl.saved_graph import differences
from maxfdl.saved_run import read_run
from maxfdl.train.program import Program
from tests import tiny
from tests.layers.families import assert_same_bits

H, STEPS = 3, 7


@pytest.fixture(scope="module", autouse=True)
def on_one_device_compiled_once():
    compiled, make = {}, Experiment.make_sharding
    compile_step = Program.compile_step

    def once(self):
        number = self.trainer.num_replicas
        if number not in compiled:
            compiled[number] = compile_step(self)
        return compiled[number]

    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        patch.setattr(Experiment, "make_sharding", lambda self: make(self, one))
        patch.setattr(Program, "compile_step", once)
        yield


def experiment(num_replicas=2):
    config = use_diloco(tiny.experiment(), num_replicas=num_replicas, sync_period=H)
    config.steps, config.metrics.tensorboard = STEPS, False
    config.trainer.log_every = config.trainer.eval_batches = 1
    return config


def train(path, num_replicas=2, **options):
    config = experiment(num_replicas)
    options = RunOptions(graph_json=graph.dump_json(config), **options)
    directory = RunDirectory(path)
    directory.write(
        config_json=options.graph_json, config_text=graph.as_text(config), command="-"
    )
    made = graph.build(graph.validate(config))
    return jax.device_get(run(made, directory, options))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, train(path)


def lines(path):
    return [*map(json.loads, (path / "metrics.jsonl").read_text().splitlines())]


def test_a_run_that_stops_in_the_middle_of_a_period_goes_on_bit_by_bit(whole, tmp_path):
    train(tmp_path, stop_at=H + 1)
    assert_same_bits(train(tmp_path), whole[1])


def test_the_log_tells_of_each_replica_and_the_evaluation_of_the_outer_weights(whole):
    path, _ = whole
    steps = [line for line in lines(path) if "loss" in line]
    assert [line["step"] for line in steps] == [*range(1, STEPS + 1)]
    for line in steps:
        of_each = [line["replica_0/loss"], line["replica_1/loss"]]
        assert line["loss"] == pytest.approx(sum(of_each) / 2)
    sent = [line["bytes_sent"] for line in steps]
    assert sent[: H - 1] == [0] * (H - 1) and sent[H - 1] * 2 == sent[-1] > 0
    assert [line["step"] for line in lines(path) if "eval_loss" in line] == [STEPS]


def test_a_saved_run_is_read_as_its_outer_weights(whole):
    path, state = whole
    assert_same_bits(read_run(path).variables["params"], state["params"])


def test_a_run_goes_on_with_more_replicas_from_the_middle_of_a_period(tmp_path):
    before = train(tmp_path, stop_at=H + 1)
    after = train(tmp_path, num_replicas=4, stop_at=H + 2)
    assert after["step"] == H + 2
    assert {x.shape[0] for x in jax.tree.leaves(after["replicas"])} == {4}
    for name in ("params", "outer"):
        assert_same_bits(after[name], before[name])
    line = [line for line in lines(tmp_path) if "loss" in line][-1]
    assert [f"replica_{i}/loss" in line for i in range(5)] == [True] * 4 + [False]


def test_another_number_of_replicas_is_the_same_run():
    two, four = experiment(2), experiment(4)
    assert differences(two, four) == []
    assert graph.summary(two, four) == "trainer.num_replicas 2 -> 4"
