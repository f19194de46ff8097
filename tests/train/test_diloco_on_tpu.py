"""DiLoCo compiled for two slices of TPUs, which a data-centre network joins."""

import functools

import jax
import pytest
from jax.experimental import topologies

from maxfdl import graph
from maxfdl.mutations import mesh, use_diloco
from maxfdl.report import hlo
from maxfdl.train.program import Program
from tests import tiny

ROWS = 32
two_slices = functools.partial(mesh, replica=2, data=4, fsdp=4)


@pytest.fixture(scope="module")
def chips():
    pytest.importorskip("libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")
        patch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        yield topologies.get_topology_desc(
            platform="tpu", topology_name="v5e:4x4", num_slices=2
        ).devices


def compiled(chips, **fields):
    """Returns the trainer, and the text of its step."""
    diloco = functools.partial(use_diloco, num_replicas=2, sync_period=6, **fields)
    sizes = dict(features=512, mlp=1024, vocab_size=512, head_dim=128)
    config = tiny.experiment(diloco, two_slices, **sizes)
    config.batch_size = ROWS
    made = graph.build(config)
    sharding = made.make_sharding(chips)
    # Each replica has a slice of its own.
    slices = [
        {chip.slice_index for chip in half.flat} for half in sharding.mesh.devices
    ]
    assert slices == [{0}, {1}]
    trainer = made.make_trainer(sharding)
    program = Program(trainer, ROWS, tiny.LENGTH)
    return trainer, program.compile_step().run.as_text()


@pytest.mark.slow
def test_slices_exchange_the_parameters_at_a_sync_and_nothing_else(chips):
    trainer, text = compiled(chips)
    always, at_sync = hlo.crossing(text, devices=16)
    assert always == [] and {c.kind for c in at_sync} == {"all-reduce"}
    sent = sum(c.payload for c in at_sync)
    size = bytes_of_a_chip(trainer)
    assert size <= sent <= 1.1 * size  # arrays are filled up to whole tiles


def bytes_of_a_chip(trainer):
    """Returns the float32 bytes of the parameters that a chip holds."""
    parameters = jax.tree.leaves(trainer.model.parameters())
    return sum(4 * p.size // (1 if p.role == "scale" else 4) for p in parameters)


@pytest.mark.slow
def test_in_int8_slices_exchange_a_quarter_of_that(chips):
    trainer, text = compiled(chips, exchange="int8")
    always, at_sync = hlo.crossing(text, devices=16)
    assert always == [] and {c.kind for c in at_sync} == {"all-gather", "all-reduce"}
    sent = sum(c.wire for c in at_sync)
    size = bytes_of_a_chip(trainer)
    assert size / 4 <= sent <= 1.1 * size / 4


@pytest.mark.slow
def test_an_overlapped_exchange_is_free_to_run_beside_the_step(chips):
    _, text = compiled(chips, fragments=2, overlap=1)
    always, at_sync = hlo.crossing(text, devices=16)
    assert always == [] and at_sync
    assert hlo.is_independent(text, devices=16)
