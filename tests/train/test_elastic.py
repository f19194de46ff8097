"""Another number of replicas: what those have that stay, and those that join."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxfdl.mutations import average_weights, mesh, use_diloco
from tests import tiny
from tests.layers.families import assert_same_bits
from tests.train.test_diloco import H, of_replica, of_two


def diloco(num_replicas, *mutations, devices=1, **fields):
    fields |= dict(num_replicas=num_replicas, sync_period=H)
    config = tiny.experiment(functools.partial(use_diloco, **fields), *mutations)
    return tiny.program(config, devices)


@functools.cache
def of_three():
    """Returns a state of three replicas in which all numbers differ."""
    average = functools.partial(average_weights, decay=0.5)
    trainer = diloco(2, average, exchange="top_k").trainer
    shapes = trainer.as_saved(
        jax.eval_shape(trainer.init), {"replicas.tokens": ((3, 1), "float32")}
    )
    number = iter(range(1, 1000))
    return jax.tree.map(
        lambda x: np.asarray(
            1000 * next(number) + np.arange(x.size).reshape(x.shape), x.dtype
        ),
        shapes,
    )


def resumed(count):
    state = of_three()
    average = functools.partial(average_weights, decay=0.5)
    made = diloco(count, average, exchange="top_k").trainer
    return state, jax.jit(made.resumed)(state)


def test_replicas_that_stay_keep_all_they_have():
    before, after = resumed(2)
    for i in range(2):
        assert_same_bits(
            of_replica(i, after["replicas"]), of_replica(i, before["replicas"])
        )
    assert {x.shape[0] for x in jax.tree.leaves(after["replicas"])} == {2}
    for name in before.keys() - {"replicas"}:
        assert_same_bits(after[name], before[name])


def test_a_new_replica_begins_with_the_outer_weights_and_the_optimizer_of_another():
    before, after = resumed(8)
    for i in range(3):
        assert_same_bits(
            of_replica(i, after["replicas"]), of_replica(i, before["replicas"])
        )
    for i in range(3, 8):
        new = of_replica(i, after["replicas"])
        other = of_replica(i % 3, before["replicas"])
        for name in ("params", "state"):
            assert_same_bits(new[name], before[name])
        for name in ("optimizer", "updates"):
            assert_same_bits(new[name], other[name])
        squares = [np.sum(np.square(x)) for x in jax.tree.leaves(before["params"])]
        assert new["param_norm"] == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
        nothing = {name: new[name] for name in ("errors", "tokens", "drift", "guard")}
        assert all(not np.any(x) for x in jax.tree.leaves(nothing))
    for name in before.keys() - {"replicas"}:
        assert_same_bits(after[name], before[name])


def test_what_was_saved_of_other_replicas_is_read_in_shards():
    """No device holds all of it, where the mesh does not divide their number."""
    program = diloco(2, functools.partial(mesh, replica=2, data=2), devices=4)
    own = program.as_saved({"replicas.tokens": ((3, 1), "float32")})["replicas"]
    specs = {x.shape: x.sharding.spec for x in jax.tree.leaves(own)}
    # Of three layers, 32 x 16.
    assert specs[3, 3, 32, 16] == PartitionSpec(None, None, "replica", None)
    of_four = program.as_saved({"replicas.tokens": ((4, 1), "float32")})["replicas"]
    specs = {x.sharding.spec[0] for x in jax.tree.leaves(of_four)}
    assert specs == {"replica"}


@pytest.mark.slow
def test_after_a_sync_more_replicas_share_the_rows_on_more_devices():
    """The loss of each is that of the outer weights, on a quarter of the rows."""
    state = of_two()[1][H - 1]
    program = diloco(4, functools.partial(mesh, replica=4), devices=4)
    state = program.resumed(state)
    variables = {name: jax.device_get(state[name]) for name in ("params", "state")}
    _, metrics = program.compile_step().run(state, program.place(tiny.batch(H)))
    evaluate = jax.jit(tiny.program(tiny.experiment()).trainer.evaluate)
    for i, loss in enumerate(metrics["loss"]):
        rows = {name: x[2 * i : 2 * i + 2] for name, x in tiny.batch(H).items()}
        terms, _ = evaluate(variables, rows)
        assert loss == pytest.approx(float(terms["cross_entropy"].mean), rel=1e-5)
