"""A run goes on with another mesh, and with another way to run its steps."""

import json
import os
import shutil

import jax
import pytest

from maxfdl import graph
from maxfdl.mutations import (
    gradient_accumulation,
    mesh,
    offload_optimizer,
    pipeline,
    remat,
    unroll_layers,
    vocab_tiling,
    zero1,
)
from maxfdl.run.directory import RunDirectory
from maxfdl.run.loop import RunOptions, run
from maxfdl.saved_graph import refuse_another_run, saved_graph
from maxfdl.sharding.mesh import MeshShape
from tests import tiny
from tests.run.test_several_processes import Run, ends, losses

STEPS, STOP = 6, 3
build = MeshShape.build


def experiment(*mutations):
    config = tiny.experiment(*mutations)
    config.steps, config.metrics.tensorboard = STEPS, False
    config.trainer.log_every, config.trainer.eval_batches = 1, 0
    return config


@pytest.fixture(scope="module", autouse=True)
def as_many_devices_as_a_mesh_needs():
    with pytest.MonkeyPatch.context() as patch:

        def build_on_first(self, devices=None):
            count = self.data * max(self.fsdp, 1) * self.tensor * self.stage
            return build(self, devices or jax.devices()[:count])

        patch.setattr(MeshShape, "build", build_on_first)
        yield


def train(path, *mutations, **options):
    """Goes on with the run in the folder `path`, or begins it; returns its losses."""
    config, directory = experiment(*mutations), RunDirectory(path)
    if directory.has_results():
        refuse_another_run(directory, saved_graph(directory), config)
    options = RunOptions(graph_json=graph.dump_json(config), **options)
    run(graph.build(config), directory, options)
    return [line["loss"] for line in lines(path)]


def lines(path):
    return map(json.loads, (path / "metrics.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Losses of a run on one device that nothing interrupts."""
    return train(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Runs that stopped half way, by the number of devices."""
    folder = tmp_path_factory.mktemp("halves")
    train(folder / "1", stop_at=STOP)
    train(folder / "8", on_eight, zero1, stop_at=STOP)
    return folder


def on_eight(config):
    """In a pipeline: of three repeats, one runs before its two stages."""
    config = pipeline(config, stages=2, microbatches=2, schedule="1f1b")
    return mesh(config, data=2, stage=2, tensor=2)


def on_two(config):
    return mesh(config, fsdp=2)


def accumulating(config):
    return gradient_accumulation(config, steps=2)


def tiled(config):
    return vocab_tiling(config, num_tiles=4)


@pytest.mark.parametrize(
    "first, then",
    [
        pytest.param(
            "1", [on_eight, zero1, accumulating, remat], marks=pytest.mark.slow
        ),
        ("1", [on_two, offload_optimizer, tiled, unroll_layers]),
        ("8", []),
        ("8", [on_two, accumulating]),
    ],
    ids=["1 to 8", "1 to 2", "8 to 1", "8 to 2"],
)
def test_a_run_goes_on_with_the_losses_of_one_that_was_not_interrupted(
    one, halves, tmp_path, first, then
):
    shutil.copytree(halves / first, tmp_path / "run")
    losses = train(tmp_path / "run", *then)
    assert len(losses) == STEPS
    assert losses == pytest.approx(one, rel=2e-6)


@pytest.mark.slow
def test_one_process_and_two_go_on_with_each_others_runs(tmp_path):
    """Devices: 1, 2 x 1, 2 x 4, 1. Rows of a batch are fed by one process or two.

    On 2 x 4 the rows of a process are not neighbours: `stage` cuts before `fsdp`.
    """

    def xla(count):
        flags = os.environ["XLA_FLAGS"]
        return {"XLA_FLAGS": flags.replace("count=8", f"count={count}")}

    common = ("steps=8", "trainer.eval_batches=1", "trainer.eval_every=2")
    runs = Run()
    try:
        whole = runs.start(tmp_path / "whole", *common, **xla(1))
        assert ends(whole)[0] == 0

        folder = tmp_path / "run"
        alone = runs.start(folder, *common, "--stop_at=2", **xla(1))
        assert ends(alone)[0] == 0
        for stop, count, mutations in (
            (4, 1, ["mesh(tensor=2)"]),
            (6, 4, ["mesh(fsdp=2,stage=2,tensor=2)"]),
        ):
            args = (*common, *mutations, f"--stop_at={stop}")
            for process in runs.start_two(folder, *args, **xla(count)):
                code, out, errors = ends(process)
                assert (code, errors) == (0, "")
        assert ends(runs.start(folder, *common, **xla(1)))[0] == 0
    finally:
        runs.close()
    expected = losses(tmp_path / "whole")
    assert list(expected) == list(range(1, 9))
    assert losses(folder) == pytest.approx(expected, rel=2e-6)
    found, wanted = (
        [line["eval_nats_per_byte"] for line in lines(path) if "eval_loss" in line]
        for path in (folder, tmp_path / "whole")
    )
    assert len(wanted) == 4 and found == pytest.approx(wanted, rel=2e-6)
