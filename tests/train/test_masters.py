"""Float32 masters beside narrow parameters, under what else a step does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.errors import ConfigError
from maxfdl.mutations import (
    average_weights,
    freeze,
    gradient_accumulation,
    master_weights,
    mesh,
    moment_storage,
    offload_optimizer,
    offload_parameters,
    param_dtype,
    stochastic_rounding,
    use_schedule_free,
    zero1,
)
from maxfdl.mutations.trainer_updates import put_qk_clip
from maxfdl.optim.rounding import StochasticRounding
from maxfdl.run.first_state import first_state
from maxfdl.train.masters import Masters
from tests import tiny

bfloat16 = functools.partial(param_dtype, dtype="bfloat16")
eight_bit = functools.partial(moment_storage, kind="eight_bit")
on_eight = functools.partial(mesh, data=2, fsdp=2, tensor=2)
WIDE = dict(features=64, mlp=128, head_dim=16)
"""Wide enough for moments in 8 bits."""


def clip(config):
    config = graph.copy(config)
    put_qk_clip(config, threshold=0.01)
    return config


def narrowed(masters):
    return jax.tree.map(lambda m: np.asarray(m).astype(jnp.bfloat16), masters)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, (one, other)))


@pytest.mark.parametrize("has_masters", [True, False])
def test_a_run_begins_with_the_masters_of_another(tmp_path, has_masters):
    """As masters, or where it trains in float32, as parameters."""
    narrow = tiny.experiment(bfloat16, master_weights, num_layers=1)
    state = tiny.begin(tiny.program(narrow))
    state["masters"] = jax.tree.map(lambda x: x * 1.001, state["masters"])
    checkpointer = Checkpointer(directory=tmp_path / "checkpoints")
    checkpointer.save(1, state, NoData(), "{}")
    checkpointer.close()
    config = narrow if has_masters else tiny.experiment(num_layers=1)
    found = first_state(tiny.program(config), str(tmp_path))
    assert_same(found["masters" if has_masters else "params"], state["masters"])
    if has_masters:
        assert_same(found["params"], state["params"])


def test_parameters_are_their_masters_in_fewer_bits():
    """Also after the clip, which scales weights that the optimizer has changed."""
    on_two = functools.partial(mesh, data=2, fsdp=1, tensor=1)
    mutations = (bfloat16, master_weights, clip, on_two, zero1)
    _, state = tiny.train(tiny.experiment(*mutations), 2, devices=2)
    masters = state["masters"]
    assert {x.dtype.name for x in jax.tree.leaves(masters)} == {"float32"}
    assert_same(state["params"], narrowed(masters))
    rounded_off = [
        np.any(m != p.astype(m.dtype))
        for m, p in zip(*map(jax.tree.leaves, (masters, state["params"])), strict=True)
    ]
    assert all(rounded_off)
    # Like the state of the optimizer, masters are sharded over replicas.
    moments = state["optimizer"][1].mu
    assert all(
        master.sharding == moment.sharding
        for master, moment in zip(
            *map(jax.tree.leaves, (masters, moments)), strict=True
        )
    )
    assert "data" in jax.tree.leaves(masters)[0].sharding.spec


def test_parameters_in_float32_have_no_masters():
    params = {"w": jnp.ones(3)}
    assert Masters().init(params) == {}
    assert Masters().init({"w": jnp.ones(3, jnp.bfloat16)})["w"].dtype == jnp.float32


def test_two_ways_to_keep_small_updates_are_refused():
    config = master_weights(stochastic_rounding(tiny.experiment()))
    assert graph.validate(config).trainer.masters is not None
    config.optimizer.rounding = graph.copy(
        stochastic_rounding(tiny.experiment()).optimizer.rounding
    )
    assert graph.build(config.optimizer.rounding) == StochasticRounding()
    with pytest.raises(ConfigError, match="two ways to keep small updates"):
        graph.validate(config)


@pytest.mark.slow
def test_in_host_memory_a_step_is_the_same_and_a_rejected_one_changes_nothing():
    mutations = (bfloat16, master_weights, average_weights)
    losses, state = tiny.train(tiny.experiment(*mutations), 3)
    config = tiny.experiment(*mutations, offload_optimizer, offload_parameters)
    offloaded, other = tiny.train(config, 3)
    np.testing.assert_allclose(offloaded, losses, rtol=1e-6)
    for name in ("params", "masters"):
        kinds = {x.sharding.memory_kind for x in jax.tree.leaves(other[name])}
        assert kinds == {"pinned_host"}
    assert_same(other["params"], narrowed(other["masters"]))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, *(jax.device_get(x["masters"]) for x in (other, state)))

    program = tiny.program(config)
    before = jax.device_get(other)
    weights = np.full((tiny.ROWS, tiny.LENGTH), np.nan, np.float32)
    broken = program.place(tiny.batch(4) | {"weights": weights})
    after, metrics = program.compile_step().run(other, broken)
    assert metrics["skipped"] == 1
    for name in ("params", "masters", "optimizer", "updates"):
        assert_same(after[name], before[name])


@pytest.mark.slow
def test_an_average_of_the_optimizer_is_of_the_masters():
    mutations = (bfloat16, master_weights, use_schedule_free)
    config = tiny.experiment(*mutations)
    _, state = tiny.train(config, 3)
    program = tiny.program(config)
    masters, z = state["masters"], state["optimizer"][-1].z
    expected = jax.tree.map(lambda y, z: y + (1 / 0.9 - 1.0) * (y - z), masters, z)
    found = program.evaluated(state)["params"]
    assert {x.dtype.name for x in jax.tree.leaves(found)} == {"bfloat16"}
    close = functools.partial(np.testing.assert_allclose, rtol=2**-8)
    jax.tree.map(
        lambda a, b: close(np.float32(a), np.float32(b)), found, narrowed(expected)
    )


STORED = {
    "masters": (bfloat16, master_weights, eight_bit),
    "stochastic": (
        bfloat16,
        stochastic_rounding,
        functools.partial(moment_storage, kind="bfloat16"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STORED)
def test_a_checkpoint_goes_on_to_the_last_bit_and_onto_another_mesh(kind, tmp_path):
    frozen = functools.partial(freeze, paths=("decoder.stacks[0].layers[0].mlp.up",))
    accumulated = functools.partial(gradient_accumulation, steps=2)
    mutations = (*STORED[kind], frozen, accumulated)
    on_mesh = tiny.experiment(*mutations, on_eight, zero1, **WIDE)
    program, alone = (
        tiny.program(on_mesh, 8),
        tiny.program(tiny.experiment(*mutations, **WIDE)),
    )
    run, state = program.compile_step().run, tiny.begin(program)
    for step in range(2):
        state, _ = run(state, program.place(tiny.batch(step)))
    kept = jax.device_get(state)
    data = iter(
        graph.build(on_mesh).make_batches(
            graph.build(on_mesh).make_data(program.trainer.model)
        )
    )
    checkpointer = Checkpointer(directory=tmp_path / "checkpoints")
    checkpointer.save(2, state, data, "{}")
    checkpointer.wait()
    last, metrics = run(state, program.place(tiny.batch(2)))
    again = checkpointer.restore(2, program.abstract_state(), data)
    assert_same(again, kept)
    again, same = run(again, program.place(tiny.batch(2)))
    assert_same((again, same), (last, metrics))
    on_one = checkpointer.restore(2, alone.abstract_state(), data)
    assert_same(on_one, kept)
    _, other = alone.compile_step().run(on_one, alone.place(tiny.batch(2)))
    np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-3)
    checkpointer.close()
