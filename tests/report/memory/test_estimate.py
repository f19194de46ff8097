"""The estimate, against arrays that lie on 8 devices and against steps that were
compiled for TPUs."""

import functools
import math

import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.mutations import compute_dtype, mesh, remat, use_diloco
from maxfdl.report.ahead import program_of
from maxfdl.report.facts import planned_program
from maxfdl.report.memory.estimate import Estimate, estimate
from tests import tiny
from tests.report.memory import compiled


def of_tiny(*mutations) -> tuple[Estimate, tuple]:
    """Returns the estimate, and the abstract arguments of the step."""
    experiment = graph.build(tiny.experiment(*mutations))
    program = program_of(experiment, jax.devices())
    arguments = program.abstract_state(), program.abstract_batch()
    return estimate("tiny", program, "cpu"), arguments


@pytest.mark.parametrize(
    "mutations",
    [
        (functools.partial(mesh, fsdp=4, tensor=2),),
        (
            functools.partial(mesh, replica=2, fsdp=4),
            functools.partial(use_diloco, num_replicas=2, sync_period=4),
        ),
    ],
    ids=["fsdp and tensor", "diloco"],
)
def test_arguments_are_what_the_first_device_holds_of_them(mutations):
    found, arguments = of_tiny(*mutations)
    held = 0
    for leaf in jax.tree.leaves(arguments):
        array = jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        held += array.addressable_shards[0].data.nbytes
    assert found.argument_bytes == held == sum(found.arguments.values())
    assert found.peak_bytes == held + found.temp_bytes
    assert found.devices == math.prod(found.mesh.values()) == 8


def test_remat_and_types_change_what_is_saved():
    saved = {}
    for policy in ("none", "full"):
        for dtype in ("float32", "bfloat16"):
            found, _ = of_tiny(
                functools.partial(remat, policy=policy),
                functools.partial(compute_dtype, dtype=dtype),
                functools.partial(mesh, fsdp=8),
            )
            saved[policy, dtype] = found.temporaries["saved for the backward pass"]
    # The input of three layers, of one row of 16 tokens and width 16.
    assert saved["full", "bfloat16"] == 3 * 16 * 16 * 2
    assert saved["full", "float32"] == 3 * 16 * 16 * 4
    assert saved["none", "float32"] > 10 * saved["full", "float32"]


def check(name: str, peak_bytes: int, argument_bytes: int) -> None:
    experiment = compiled.experiment_of(compiled.CASES[name])
    found = estimate(name, planned_program(experiment, 4), "tpu")
    assert found.peak_bytes == pytest.approx(peak_bytes, rel=0.1)
    # XLA rounds the size of each array up to whole tiles.
    assert found.argument_bytes == pytest.approx(argument_bytes, rel=1e-3)


def test_it_agrees_with_the_step_that_was_compiled():
    check("full", **compiled.found()["full"])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(compiled.CASES) - {"full"}))
def test_it_agrees_with_what_was_compiled(name):
    check(name, **compiled.found()[name])


@pytest.mark.slow
@pytest.mark.exhaustive  # A compile takes over a minute.
def test_it_agrees_with_a_step_that_is_compiled_now(monkeypatch, tmp_path):
    pytest.importorskip("libtpu")
    monkeypatch.setattr(compiled, "FILE", tmp_path / "memory.json")
    compiled.write(["full"])
    check("full", **compiled.found()["full"])
