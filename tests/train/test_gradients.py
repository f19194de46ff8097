"""Gradients are the same in however many parts, and on however many devices."""

import functools

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.layers.sinks import Counts, Last, Max, Mean, Sum, merged
from maxfdl.mutations import (
    gradient_accumulation,
    mesh,
    router_losses,
    to_linen,
    unroll_layers,
    vocab_tiling,
)
from maxfdl.train.auxiliary import router_loads
from maxfdl.train.program import Program

ROWS, LENGTH = 16, 24


def ragged_batch(vocab=128):
    """Two documents and padding a row; the rows of one microbatch count for nothing."""
    rng = np.random.default_rng(0)
    place = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    first, real = rng.integers(3, 9, (ROWS, 1)), rng.integers(12, 25, (ROWS, 1))
    segments = np.where(place < first, 1, np.where(place < real, 2, 0))
    weights = (segments > 0) * rng.integers(0, 3, (ROWS, LENGTH)) / 2
    weights[::8] = 0.0
    tokens = rng.integers(0, vocab, (2, ROWS, LENGTH))
    return {
        "tokens": np.int32(tokens[0]),
        "targets": np.int32(tokens[1]),
        "segment_ids": np.int32(segments),
        "positions": np.int32(np.where(place < first, place, place - first)),
        "weights": np.float32(weights),
    }


def config_of(family):
    config = zoo_smoke.experiment(family)
    config.batch_size, config.sequence_length = ROWS, LENGTH
    # That of a batch is no sum over its parts, see `BatchBalance`.
    return router_losses(config, sequence_balance=0.5, z=0.3)


def gradients(config: fdl.Config, devices: int = 1):
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:devices]))
    program = Program(trainer, ROWS, LENGTH)
    state = program.init()
    run = jax.jit(trainer.gradients)
    return jax.device_get(run(state, program.place(ragged_batch())))


@functools.cache
def of_whole_batch(family):
    return gradients(config_of(family))


def assert_equal_gradients(left, right):
    (left, left_parts), (right, right_parts) = left, right
    difference = jax.tree.map(np.subtract, left, right)
    assert optax.tree.norm(difference) <= 1e-6 * optax.tree.norm(right)
    for name, value in right_parts.sums.items():
        np.testing.assert_allclose(left_parts.sums[name], value, rtol=1e-6)
    loads, expected = (router_loads(p.sinks) for p in (left_parts, right_parts))
    assert loads.keys() == expected.keys()
    for path, load in expected.items():
        np.testing.assert_array_equal(loads[path].counts.value, load.counts.value)


@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("mixtral", 2),
        ("mixtral", 8),
        pytest.param("llama3", 4, marks=pytest.mark.slow),
    ],
)
def test_microbatches_give_the_gradients_of_the_batch(family, steps):
    config = gradient_accumulation(config_of(family), steps=steps)
    assert_equal_gradients(gradients(config), of_whole_batch(family))


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, marks=pytest.mark.slow),
        {"fsdp": 4, "tensor": 2},
    ],
    ids=str,
)
def test_so_do_devices_with_tiles_in_linen(axes):
    config = mesh(config_of("mixtral"), **({"data": 1, "fsdp": 1, "tensor": 1} | axes))
    config = gradient_accumulation(config, steps=2)
    config = vocab_tiling(to_linen(unroll_layers(config)), num_tiles=3)
    assert_equal_gradients(gradients(config, devices=8), of_whole_batch("mixtral"))


def test_parts_become_one_by_their_kind():
    x = jnp.asarray([[1.0, 5.0], [3.0, 2.0]])
    whole = merged(
        {
            "sum": Sum(x),
            "mean": Mean(x, jnp.asarray([2.0, 2.0])),
            "max": Max(x),
            "counts": Counts(x.astype(jnp.int32)),
            "last": Last(x),
        }
    )
    assert whole["sum"].value.tolist() == [4.0, 7.0]
    assert whole["mean"].sum.tolist() == [4.0, 7.0] and whole["mean"].weight == 4.0
    assert whole["max"].value.tolist() == [3.0, 5.0]
    assert whole["counts"].value.tolist() == [4, 7]
    assert whole["last"].value.tolist() == [3.0, 2.0]
