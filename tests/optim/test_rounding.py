"""Narrow parameters that are rounded stochastically, and the keys for it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.optim.keys import key_for, keys_of
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.rounding import StochasticRounding
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.optim.transforms import Sgd

NUMBERS, STEPS, RATE = 2**14, 200, 1e-4


def after_small_steps(rounding):
    """Returns bfloat16 ones after updates of 1e-4, which has steps of 1/256 there."""
    parameters = {"w": Parameter((NUMBERS,), ("norm",), Constant(), "scale")}
    optimizer = Optimizer(
        clip=None,
        rule=Sgd(),
        weight_decay=None,
        schedule=WarmupCosine(peak=RATE, final_fraction=1.0),
        rounding=rounding,
        parameters=parameters,
        steps=STEPS,
    )
    params = {"w": jnp.ones(NUMBERS, jnp.bfloat16)}

    def body(step, carry):
        return optimizer.update(jax.tree.map(jnp.ones_like, params), *carry[::-1], step)

    return jax.jit(
        lambda params: jax.lax.fori_loop(
            0, STEPS, body, (params, optimizer.init(params))
        )
    )(params)[0]["w"]


def test_small_updates_add_up_without_a_master():
    assert np.all(after_small_steps(None) == 1.0)
    found = after_small_steps(StochasticRounding())
    assert found.dtype == jnp.bfloat16
    # Of each number as many roundings as steps, each off by at most half of 1/256 in
    # root mean square.
    deviation = math.sqrt(STEPS / NUMBERS) / 512
    assert abs(np.mean(np.float64(found)) - (1 - RATE * STEPS)) < 5 * deviation


def test_each_step_parameter_layer_and_purpose_has_a_key_of_its_own():
    one = Parameter((4,), ("norm",), Constant(), "scale")
    parameters = {"a": {"w": one}, "b": {"w": one, "s": one.stacked(3)}}
    seen = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        for key in jax.tree.leaves(keys_of(parameters, seed, jnp.int32(step))):
            for purpose in ("mu", "nu"):
                data = jax.random.key_data(key_for(key, purpose))
                seen += map(tuple, data.reshape(-1, 2).tolist())
    assert len(set(seen)) == len(seen) == 3 * 2 * (2 + 3)


def test_the_keys_of_some_parameters_are_those_among_all():
    one = Parameter((4,), ("norm",), Constant(), "scale")
    parameters = {"a": one, "b": one.stacked(2)}
    every = keys_of(parameters, 0, jnp.int32(5))
    some = keys_of(parameters | {"a": optax.MaskedNode()}, 0, jnp.int32(5))
    assert jnp.all(some["b"] == every["b"])
