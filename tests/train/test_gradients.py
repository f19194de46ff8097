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
from maxfdl.layers import nnx
from maxfdl.layers.sinks import Counts, Last, Max, Mean, Sum, merged
from maxfdl.mutations import (
    gradient_accumulation,
    mesh,
    multi_token_prediction,
    router_losses,
    to_linen,
    unroll_layers,
    vocab_tiling,
    zero1,
)
from maxfdl.report import hlo
from maxfdl.train.auxiliary import router_loads
from maxfdl.train.program import Program
from maxfdl.train.router import SelectionBias
from maxfdl.train.updates import Step
from tests import tiny
from tests.layers.families import assert_same_bits

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


WITH_ROUTERS = ("mixtral", "deepseek_v3")


def config_of(family):
    """Two layers of a kind, all terms of an objective, and embeddings of unit size.

    Routers have biases for selection.

    Those of 0.02, that a run begins with, are lengthened fiftyfold by the first norm,
    and so is the rounding of their gradient, which is most of the whole.
    """
    config = zoo_smoke.experiment(family)
    config.batch_size, config.sequence_length = ROWS, LENGTH
    for stack in config.model.decoder.stacks:
        stack.repeats = min(stack.repeats, 2)
    config.model.embedding.initializer.stddev = 1.0
    if family in WITH_ROUTERS:
        # That of a batch is no sum over its parts, see `BatchBalance`.
        config = router_losses(config, sequence_balance=0.5, z=0.3)
        for router in graph.nodes_of(config.model, nnx.Router):
            router.use_selection_bias = True
    return multi_token_prediction(config, depth=1)


def program_of(config: fdl.Config, devices: int = 1) -> Program:
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:devices]))
    return Program(trainer, ROWS, LENGTH)


def gradients(config: fdl.Config, devices: int = 1):
    program = program_of(config, devices)
    run = jax.jit(program.trainer.gradients_of)
    batch = ragged_batch(program.trainer.model.network.vocab_size)
    return jax.device_get(run(tiny.begin(program), program.place(batch)))


@functools.cache
def of_whole_batch(family):
    return gradients(config_of(family))


@functools.cache
def on_mesh(*mutations):
    config = config_of("mixtral")
    for mutation in mutations:
        config = mutation(config)
    return gradients(config, devices=8)


def assert_equal_gradients(left, right):
    (left, left_parts), (right, right_parts) = left, right
    difference = jax.tree.map(np.subtract, left, right)
    assert optax.tree.norm(difference) <= 1e-6 * optax.tree.norm(right)
    assert left_parts.sums.keys() == right_parts.sums.keys()
    for name, value in right_parts.sums.items():
        np.testing.assert_allclose(left_parts.sums[name], value, rtol=1e-6)
    loads, expected = (router_loads(p.sinks) for p in (left_parts, right_parts))
    assert loads.keys() == expected.keys()
    for path, load in expected.items():
        np.testing.assert_array_equal(loads[path].counts.value, load.counts.value)


def names_of(mutations):
    """Names a case by the mutations in it."""
    parts = [getattr(each, "func", each).__name__ for each in mutations]
    fields = [getattr(each, "keywords", {}) for each in mutations]
    return "+".join(
        f"{p}{[*f.values()] or ''}" for p, f in zip(parts, fields, strict=True)
    )


def on(**axes):
    """Returns the mutation that sets the mesh to these axes, and all others to 1."""
    return functools.partial(mesh, **({"data": 1, "fsdp": 1, "tensor": 1} | axes))


def in_parts(steps):
    return functools.partial(gradient_accumulation, steps=steps)


def in_tiles(config):
    return vocab_tiling(config, num_tiles=3)


@pytest.mark.parametrize(
    ("family", "steps", "mutations"),
    [
        ("mixtral", 8, (to_linen,)),
        ("deepseek_v3", 4, (unroll_layers,)),
        ("llama3", 2, (in_tiles,)),
    ],
)
@pytest.mark.slow
def test_microbatches_give_the_gradients_of_the_batch(family, steps, mutations):
    config = gradient_accumulation(config_of(family), steps=steps)
    for mutation in mutations:
        config = mutation(config)
    assert_equal_gradients(gradients(config), of_whole_batch(family))


REPLICAS = (on(data=8), zero1, in_parts(2), to_linen)


@pytest.mark.parametrize(
    "mutations",
    [
        pytest.param(mutations, marks=pytest.mark.slow)
        for mutations in [
            REPLICAS,
            (on(data=2, fsdp=2, tensor=2), in_parts(4), in_tiles),
            (on(fsdp=8), in_parts(2)),
            (on(fsdp=4, tensor=2), to_linen, unroll_layers, in_tiles),
            (on(data=4, fsdp=2), zero1, in_tiles),
        ]
    ],
    ids=names_of,
)
def test_so_do_devices(mutations):
    assert_equal_gradients(on_mesh(*mutations), of_whole_batch("mixtral"))


@pytest.mark.slow
def test_the_balance_of_a_batch_is_the_same_on_replicas():
    config = router_losses(config_of("mixtral"), batch_balance=0.7)
    alone = gradients(config)
    assert_equal_gradients(gradients(on(data=8)(config), devices=8), alone)


@pytest.mark.slow
def test_dropout_is_the_same_however_a_batch_is_cut():
    config = tiny.experiment()
    config.batch_size, config.sequence_length = ROWS, LENGTH
    config.model.decoder.stacks[0].layers[0].dropout.rate = 0.3
    config.model.embedding.initializer.stddev = 1.0
    whole = gradients(config)
    assert_equal_gradients(gradients(in_parts(4)(config)), whole)
    assert_equal_gradients(gradients(on(data=4, fsdp=2)(config), devices=8), whole)
    config.model.decoder.stacks[0].layers[0].dropout.rate = 0.0
    other = gradients(config)[1].sums["cross_entropy"]
    assert abs(other / whole[1].sums["cross_entropy"] - 1) > 1e-3


@functools.cache
def compiled_step(config_name):
    config = tiny.experiment() if config_name == "tiny" else config_of(config_name)
    config.batch_size, config.sequence_length = ROWS, LENGTH
    program = program_of(zero1(in_parts(2)(on(data=8)(config))), devices=8)
    return program, program.compile_step().run


of_each = pytest.mark.parametrize(
    "config_name", ["tiny", pytest.param("mixtral", marks=pytest.mark.slow)]
)


@of_each
def test_no_gradient_crosses_the_mesh_before_the_last_microbatch(config_name):
    program, compiled = compiled_step(config_name)
    collectives = hlo.read(compiled.as_text()).collectives
    assert not [c for c in collectives if c.in_loop and c.group > 1]
    state = program.abstract_state()
    sizes = [leaf.size * 4 for leaf in jax.tree.leaves(state["params"])]
    reduced = [c for c in collectives if c.kind == "reduce-scatter"]
    # What has no dim to cut in eight is added up whole, and little else is.
    assert sum(c.payload for c in reduced) >= 0.9 * sum(sizes)


@of_each
def test_replicas_share_out_the_state_of_the_optimizer(config_name):
    program, compiled = compiled_step(config_name)
    batch = ragged_batch(program.trainer.model.network.vocab_size)
    state, metrics = compiled(tiny.begin(program), program.place(batch))
    assert np.isfinite(metrics["loss"])
    moments = jax.tree.leaves((state["optimizer"][1].mu, state["optimizer"][1].nu))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in moments)
    whole = sum(leaf.nbytes for leaf in moments)
    # Vectors of 4 and 2 numbers (a router has 4 experts) cannot be cut in eight.
    assert held <= 1.05 * whole / 8
    for leaf in jax.tree.leaves(state["params"]):
        assert leaf.addressable_shards[0].data.shape == leaf.shape


@pytest.mark.slow
def test_five_steps_with_shared_out_state_are_those_without():
    mutations = [on(data=4), in_parts(2)]
    losses, state = tiny.train(tiny.experiment(*mutations), 5, devices=4)
    shared, other = tiny.train(tiny.experiment(*mutations, zero1), 5, devices=4)
    np.testing.assert_allclose(shared, losses, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # noqa: E731
    jax.tree.map(close, other["params"], state["params"])


@pytest.mark.parametrize(
    "name", [pytest.param("loss", marks=pytest.mark.slow), "one shard"]
)
def test_a_nan_anywhere_leaves_replicas_as_they_were(name):
    program = tiny.program(tiny.experiment(on(data=8), in_parts(1), zero1), 8)
    run, state = program.compile_step().run, tiny.begin(program)
    before = jax.device_get(state)
    batch = tiny.batch(0)
    batch["weights"][slice(None) if name == "loss" else 3] = np.nan
    state, metrics = run(state, program.place(batch))
    after = jax.device_get(state)
    for part in ("params", "optimizer", "state", "updates"):
        assert_same_bits(after[part], before[part])
    assert metrics["skipped"] == 1 and not np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_biases_of_routers_move_alike_however_a_batch_is_cut():
    for _, parts in (of_whole_batch("mixtral"), on_mesh(*REPLICAS)):
        variables = {"params": {}, "state": parts.layer_state}
        moved, _ = SelectionBias(rate=0.1)(
            variables, {}, Step(parts.sinks, {}, jnp.array(True))
        )
        loads = router_loads(parts.sinks).items()
        (load,) = [load for key, load in loads if key.layer[0] == "decoder"]
        (bias,) = jax.tree.leaves(moved["state"]["decoder"])
        counts = np.asarray(load.counts.value)
        mean = counts.mean(axis=-1, keepdims=True)
        np.testing.assert_array_equal(
            np.float32(bias), np.float32(0.1) * np.sign(mean - counts)
        )
        assert np.all(
            counts.sum(axis=-1) == 2 * np.sum(ragged_batch()["segment_ids"] > 0)
        )


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
