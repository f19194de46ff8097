"""DiLoCo: replicas that train apart, and what their syncs exchange."""

import functools

import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError, UserError
from maxfdl.layers.frozen import trained
from maxfdl.mutations import (
    average_weights,
    batch_ramp_up,
    freeze,
    gradient_accumulation,
    mesh,
    to_linen,
    use_diloco,
    use_sgd,
    use_standard_trainer,
    zero1,
)
from maxfdl.report import hlo
from maxfdl.report.facts import facts_of
from maxfdl.sharding.room import bytes_per_device
from tests import tiny
from tests.layers.families import assert_same_bits

H = 3
two = functools.partial(use_diloco, num_replicas=2, sync_period=H)
four = functools.partial(use_diloco, num_replicas=4, sync_period=H)
across = functools.partial(mesh, replica=2, data=2, fsdp=2)


def train(config, steps, devices=1, batch=tiny.batch):
    """Returns the metrics of each step and the states after each, on the host, and the
    compiled step."""
    program = tiny.program(config, devices)
    compiled, state = program.compile_step().run, tiny.begin(program)
    metrics, states = [], []
    for i in range(steps):
        state, found = compiled(state, program.place(batch(i)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(found))
    return metrics, states, compiled


@functools.cache
def of_two():
    return train(tiny.experiment(two), 2 * H)


@functools.cache
def of_two_on_eight():
    return train(tiny.experiment(two, across, zero1), 2 * H, devices=8)


def losses(metrics):
    return np.stack([each["loss"] for each in metrics])


def of_replica(index, tree):
    return jax.tree.map(lambda x: x[index], tree)


def are_equal(a, b):
    return jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def assert_close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 0, atol), a, b)


def plain_sgd():
    config = tiny.experiment(functools.partial(use_sgd, momentum=0.0))
    config.optimizer.clip = None
    config.model.embedding.initializer.stddev = 1.0
    return config


def test_with_plain_sgd_and_a_sync_in_each_step_it_is_data_parallel_training():
    """The mean of what replicas have learnt is then the gradient of the whole batch."""
    diloco = use_diloco(
        plain_sgd(),
        num_replicas=2,
        sync_period=1,
        learning_rate=1.0,
        momentum=0.0,
        average="tokens",
    )
    metrics, states, _ = train(diloco, 20)
    whole, state = tiny.train(plain_sgd(), 20)
    tokens = [tiny.batch(i)["weights"].reshape(2, -1).sum(axis=1) for i in range(20)]
    means = np.average(losses(metrics), axis=1, weights=tokens)
    np.testing.assert_allclose(means, whole, rtol=1e-6)
    assert_close(states[-1]["params"], jax.device_get(state["params"]), 2e-6)


@pytest.mark.slow
def test_between_syncs_a_replica_is_the_standard_trainer_on_its_rows():
    def half(i):
        return {name: rows[: tiny.ROWS // 2] for name, rows in tiny.batch(i).items()}

    config = tiny.experiment()
    config.batch_size = tiny.ROWS // 2
    metrics, states, _ = train(config, H - 1, batch=half)
    found, of_replicas, _ = of_two()
    np.testing.assert_allclose(losses(found)[: H - 1, 0], losses(metrics), atol=1e-6)
    own = of_replica(0, of_replicas[H - 2]["replicas"]["params"])
    assert_close(own, states[-1]["params"], 1e-6)


def test_the_outer_weights_move_at_a_sync_alone_and_all_go_on_from_them():
    _, states, _ = of_two()
    for step in range(1, 2 * H):
        old, new = states[step - 1], states[step]
        own = [of_replica(i, new["replicas"]["params"]) for i in range(2)]
        if (step + 1) % H:
            assert all(are_equal(old["params"], new["params"]))
            assert not any(are_equal(own[0], own[1]))
        else:
            assert not any(are_equal(old["params"], new["params"]))
            assert_same_bits(own[0], new["params"])
            assert_same_bits(own[1], new["params"])


@pytest.mark.slow
def test_a_sync_is_a_step_of_nesterov_momentum_along_the_mean_delta():
    """Written out, for the second sync: from the momentum that the first one left."""
    _, states, _ = of_two()
    # What the replicas have before the sync is what they have where it comes later.
    later = functools.partial(use_diloco, num_replicas=2, sync_period=2 * H + 1)
    program = tiny.program(tiny.experiment(later))
    places = program.trainer.state_shardings()
    start = jax.device_put(states[2 * H - 2], places)
    batch = program.place(tiny.batch(2 * H - 1))
    state, _ = program.compile_step().run(start, batch)
    inner = jax.device_get(state)["replicas"]["params"]
    old, new = states[H - 1], states[2 * H - 1]
    leaves = jax.tree.leaves(old["outer"]["optimizer"])
    momentum = jax.tree.unflatten(jax.tree.structure(old["params"]), leaves)

    def stepped(outer, own, m):
        delta = outer - own.mean(axis=0)
        return outer - 0.7 * (delta + 0.9 * (0.9 * m + delta))

    expected = jax.tree.map(stepped, old["params"], inner, momentum)
    assert_close(new["params"], expected, 1e-6)
    deltas = jax.tree.map(lambda outer, own: outer - own, old["params"], inner)
    flat = np.concatenate([x.reshape(2, -1) for x in jax.tree.leaves(deltas)], axis=1)
    norms = np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(new["replicas"]["drift"][:, 0], norms, rtol=1e-5)
    cosine = flat[0] @ flat[1] / norms.prod()
    np.testing.assert_allclose(new["outer"]["cosine"], cosine, atol=1e-5)


@pytest.mark.slow
def test_the_numbers_are_those_of_one_device_with_the_outer_state_sharded():
    metrics, states, _ = of_two_on_eight()
    alone, expected, _ = of_two()
    np.testing.assert_allclose(losses(metrics), losses(alone), rtol=0, atol=1e-5)
    assert_close(states[-1]["params"], expected[-1]["params"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["nnx", "linen"])
def test_devices_may_have_several_replicas_each(family):
    changes = [to_linen] if family == "linen" else []
    config = tiny.experiment(four, *changes)
    metrics, states, _ = train(config, 2 * H)
    split = functools.partial(mesh, replica=2, data=2)
    found, of_split, _ = train(split(config), 2 * H, devices=4)
    np.testing.assert_allclose(losses(found), losses(metrics), rtol=0, atol=1e-5)
    # Adam's direction is a sign in its first steps: it enlarges roundings.
    assert_close(of_split[-1]["params"], states[-1]["params"], 5e-5)


def sizes_on_a_device(config):
    """Returns the float32 bytes of all parameters that a device of `across` holds."""
    parameters = jax.tree.leaves(tiny.program(config, 8).trainer.model.parameters())
    return sum(4 * p.size // (1 if p.role == "scale" else 2) for p in parameters)


def test_replicas_exchange_one_array_of_the_size_of_the_parameters_at_a_sync():
    config = tiny.experiment(two, across)
    text = tiny.program(config, 8).compile_step().run.as_text()
    always, at_sync = hlo.crossing(text, devices=4)
    assert always == []
    assert {c.kind for c in at_sync} == {"all-reduce"}
    scalars = sum(c.payload for c in at_sync) - sizes_on_a_device(config)
    assert 0 <= scalars <= 16


@pytest.mark.slow
def test_with_sharded_outer_state_each_device_of_a_replica_exchanges_a_share():
    """Of half the numbers, for there are two data-parallel devices; what replicas share
    out, too, is gathered from them."""
    config = tiny.experiment(two, across, zero1)
    always, at_sync = hlo.crossing(of_two_on_eight()[2].as_text(), devices=4)
    assert always == []
    kinds = {c.kind for c in at_sync}
    assert kinds == {"all-gather", "all-reduce"}
    all_reduce = hlo.Collective("all-reduce", sizes_on_a_device(config), group=2)
    assert sum(c.wire for c in at_sync) <= 0.62 * all_reduce.wire
    program = tiny.program(config, 8)
    places = program.trainer.state_shardings()["outer"]["optimizer"]
    assert "replica" in {e for x in jax.tree.leaves(places) for e in x.spec}


@pytest.mark.slow
def test_a_step_takes_the_memory_that_is_computed():
    """Inner state of the replicas of a device, and its shard of the outer state."""
    config = tiny.experiment(two, across, zero1)
    program = tiny.program(config, 8)
    state = program.abstract_state()
    memory = of_two_on_eight()[2].memory_analysis()
    batch = bytes_per_device(program.abstract_batch())
    assert memory.argument_size_in_bytes == bytes_per_device(state) + batch
    assert memory.alias_size_in_bytes == bytes_per_device(state)
    found = facts_of(graph.build(config), 8)
    assert sum(found.state_bytes_per_device.values()) == bytes_per_device(state)
    assert found.replicas is not None
    replicas = found.replicas.bytes_per_device
    assert sum(replicas.values()) == found.state_bytes_per_device["replicas"]


def test_a_bad_batch_is_that_of_its_replica_alone():
    def batch(i):
        rows = tiny.batch(i)
        if i == 1:
            rows["weights"][0, 0] = np.nan
        return rows

    metrics, states, _ = train(tiny.experiment(two), H, batch=batch)
    assert metrics[1]["skipped"].tolist() == [1, 0]
    before, after = (states[i]["replicas"]["params"] for i in (0, 1))
    assert all(are_equal(of_replica(0, before), of_replica(0, after)))
    assert not any(are_equal(of_replica(1, before), of_replica(1, after)))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(states[-1]["params"]))


@pytest.mark.slow
def test_a_replica_that_has_learnt_nothing_is_left_out_of_the_average():
    """Whatever it sees, the others go on as if they were alone, and it follows them."""

    def spoilt(i):
        rows = tiny.batch(i)
        rows["weights"][: tiny.ROWS // 2, 0] = np.nan
        return rows

    config = tiny.experiment(two)
    config.trainer.outer.rule.momentum = 0.0
    config.trainer.outer.learning_rate = 1.0
    metrics, states, _ = train(config, H, batch=spoilt)
    assert metrics[-1]["skipped"].tolist() == [H, 0]
    good, _, _ = of_two()
    np.testing.assert_array_equal(losses(metrics)[:, 1], losses(good)[:H, 1])
    # Alone in the mean, the second replica is where it was.
    drift = states[-1]["replicas"]["drift"][:, 0]
    np.testing.assert_allclose(drift, [0.0, good[-H - 1]["drift"][1]], rtol=1e-5)


@pytest.mark.slow
def test_frozen_parameters_stand_once_and_averages_are_of_all_replicas():
    fixed = functools.partial(freeze, roles=("embedding",))
    config = tiny.experiment(two, fixed, functools.partial(average_weights, decay=0.5))
    program = tiny.program(config)
    state = program.abstract_state()
    parameters = program.trainer.model.parameters()
    own = state["replicas"]["params"]
    assert "embedding" in state["params"] and "embedding" not in own
    shapes = jax.tree.map(lambda p: (2, *p.full_shape), trained(parameters))
    assert jax.tree.map(lambda x: x.shape, own) == shapes
    _, states, _ = train(config, 2)
    found = jax.jit(program.trainer.evaluated)(states[-1])["params"]
    memory = states[-1]["replicas"]["updates"]["weight_average"]["average"]
    expected = jax.tree.map(lambda x: x.mean(axis=0), memory)
    assert_close(trained(parameters, found), expected, 1e-6)
    assert_same_bits(found["embedding"], states[-1]["params"]["embedding"])


def test_what_is_evaluated_is_the_outer_weights():
    trainer = tiny.program(tiny.experiment(two)).trainer
    assert trainer.evaluated_from == ("params", "state")
    state = of_two()[1][H]
    assert_same_bits(trainer.evaluated(state)["params"], state["params"])


def test_the_log_has_means_numbers_of_each_replica_and_the_bytes_sent():
    trainer = tiny.program(tiny.experiment(two)).trainer
    metrics = of_two()[0][-1]
    found = trainer.reported(2 * H, metrics)
    assert found["loss"] == pytest.approx(metrics["loss"].mean())
    for i in range(2):
        assert found[f"replica_{i}/loss"] == pytest.approx(metrics["loss"][i])
        assert found[f"replica_{i}/drift"] == pytest.approx(metrics["drift"][i])
    size = sum(p.size for p in jax.tree.leaves(trainer.model.parameters()))
    assert found["bytes_sent"] == 2 * 4 * size
    assert all(isinstance(value, float) for value in found.values())


def problem(*mutations):
    with pytest.raises(ConfigError) as error:
        graph.build(tiny.experiment(*mutations))
    return str(error.value)


def test_what_cannot_be_is_refused_in_a_sentence():
    three = functools.partial(use_diloco, num_replicas=3, sync_period=H)
    assert "batch_size (8) must be a multiple of trainer.num_replicas (3)" in problem(
        three
    )
    axis = functools.partial(mesh, replica=4)
    assert "num_replicas (2) must be a multiple of mesh.replica (4)" in problem(
        two, axis
    )
    assert (
        "Trainer trains one model, and mesh.replica (4) lays out several side by side:"
        " apply use_diloco" in problem(two, axis, use_standard_trainer)
    )
    eight = functools.partial(use_diloco, num_replicas=8, sync_period=0)
    assert "DiLoCo sync_period (0) must be at least 1." in problem(eight)
    parts = functools.partial(gradient_accumulation, steps=4)
    assert (
        "batch_size / trainer.num_replicas (2) must be a multiple of"
        " trainer.gradients.steps (4)" in problem(four, parts)
    )
    ramp = functools.partial(batch_ramp_up, start=2, steps=16)
    assert "ramp_up.start (2) must be a multiple of" in problem(four, ramp)


def test_rows_of_a_replica_that_its_mesh_cannot_cut_are_refused():
    config = tiny.experiment(two, functools.partial(mesh, replica=1, data=8))
    with pytest.raises(UserError, match="batch_size / num_replicas, sequence_length"):
        tiny.program(config, 8)
