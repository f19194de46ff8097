"""The average of weights, against its sum written out."""

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.mutations import average_weights, use_schedule_free
from maxfdl.train.updates import Step
from maxfdl.train.weight_average import WeightAverage
from tests import tiny


def test_it_is_the_weighted_mean_of_all_weights_so_far():
    update, rng = WeightAverage(decay=0.8), np.random.default_rng(0)
    weights = rng.normal(size=(5, 3)).astype(np.float32)
    memory = update.init({"w": jnp.zeros(3)})
    first = update.evaluated({"w": jnp.ones(3)}, memory)
    assert first["w"].tolist() == [1.0] * 3  # nothing was averaged yet
    for n in range(1, 6):
        variables = {"params": {"w": jnp.asarray(weights[n - 1])}, "state": {}}
        kept, memory = update(variables, memory, Step({}, {}, jnp.array(True)))
        assert kept is variables
        shares = 0.8 ** np.arange(n - 1, -1, -1, dtype=np.float64)
        mean = shares @ weights[:n] / shares.sum()
        found = update.evaluated(variables["params"], memory)["w"]
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


def test_a_run_evaluates_it_and_trains_as_without():
    losses, state = tiny.train(tiny.experiment(average_weights), 3)
    alone, other = tiny.train(tiny.experiment(), 3)
    # Two programs: the compiler may order sums otherwise.
    np.testing.assert_allclose(losses, alone, rtol=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)  # noqa: E731
    jax.tree.map(close, state["params"], other["params"])
    program = tiny.program(tiny.experiment(average_weights))
    found = program.evaluated(state)["params"]
    means = state["updates"]["weight_average"]["average"]
    jax.tree.map(np.testing.assert_array_equal, found, means)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), found, state["params"])
    assert all(jax.tree.leaves(moved))


def test_with_another_average_it_is_still_of_the_trained_weights():
    config = tiny.experiment(use_schedule_free, average_weights)
    _, state = tiny.train(config, 3)
    found = tiny.program(config).evaluated(state)["params"]
    average = state["updates"]["weight_average"]["average"]
    jax.tree.map(np.testing.assert_array_equal, found, average)
