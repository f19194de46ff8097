"""What is trained for a storage of few bits computes the same once it is stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.layers.parameter import map_parameters
from maxfdl.mutations import (
    dequantize_weights,
    quantize_weights,
    remat,
    to_linen,
    unroll_layers,
)
from tests import tiny
from tests.layers.families import assert_same_bits

int4 = functools.partial(quantize_weights, format="int4", group=8)
trained_for = functools.partial(int4, simulate=True)


@functools.cache
def trained(*mutations):
    config = tiny.experiment(trained_for, *mutations, num_layers=2)
    losses, state = tiny.train(config, 2)
    return losses, jax.device_get(state)


def logits(config, params):
    model = graph.build(config).make_model()
    tokens = jnp.asarray(tiny.batch(0)["tokens"])
    return jax.jit(model.apply)({"params": params, "state": {}}, tokens).logits


def packed(config, params):
    """Returns what a graph that stores kernels has of these parameters."""

    def part(path, parameter):
        names = path.removesuffix("_scale").split("/")
        kernel = functools.reduce(lambda tree, name: tree[name], names, params)
        return parameter.part_of(kernel)

    return map_parameters(part, graph.build(config).make_model().parameters())


def test_what_it_learns_is_what_the_packed_model_computes():
    losses, state = trained()
    assert np.all(np.isfinite(losses))
    config = tiny.experiment(int4, num_layers=2)
    stored = logits(config, packed(config, state["params"]))
    ours = logits(tiny.experiment(trained_for, num_layers=2), state["params"])
    np.testing.assert_array_equal(ours, stored)
    plain = logits(tiny.experiment(num_layers=2), state["params"])
    assert np.any(plain != stored)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(to_linen,), (unroll_layers,), (remat,)])
def test_however_the_layers_run_nothing_changes_to_the_last_bit(how):
    (losses, state), (expected_losses, expected) = trained(*how), trained()
    assert losses == expected_losses
    assert_same_bits(state, expected)


def test_the_later_of_two_wins_and_the_inverse_is_one():
    config = tiny.experiment()
    assert int4(trained_for(config)) == int4(config)
    assert trained_for(int4(config)) == trained_for(config)
    assert dequantize_weights(trained_for(config)) == config
