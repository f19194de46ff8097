"""Adafactor against torch, and what it keeps of a matrix."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.optim.adafactor import Adafactor
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import WarmupConstant
from maxfdl.optim.transforms import WeightDecay
from tests import goldens

GOLDEN = goldens.algorithm("optimizers")
NAMES = ("w0", "w1", "w2", "b")


def declared(*shape, role="kernel", contracted=0, **fields):
    axes = ("embed",) * len(shape)
    return Parameter(shape, axes, Constant(), role, contracted, **fields)


def direction(parameter, grad, value):
    """Returns the direction of the second step along `grad`."""
    transform = Adafactor().transform({"w": parameter})
    update, params = jax.jit(transform.update), {"w": value}
    _, state = update({"w": jnp.sin(grad)}, transform.init(params), params)
    return update({"w": grad}, state, params)[0]["w"]


def assert_same(ours, theirs):
    # Up to the order of sums, which XLA:CPU chooses by the size of the whole array.
    np.testing.assert_allclose(ours, theirs, rtol=5e-7)


def random(*shape):
    return jnp.float32(np.random.default_rng(0).normal(size=shape))


def test_five_steps_agree_with_torch():
    settings = GOLDEN.info["params"]["adafactor"]["all_settings"]
    params = {name: jnp.asarray(GOLDEN[f"in.init.{name}"]) for name in NAMES}
    parameters: dict = {
        name: declared(*x.shape, contracted=1)
        if x.ndim == 2
        else declared(*x.shape, role="bias")
        for name, x in params.items()
    }
    optimizer = Optimizer(
        clip=None,
        rule=Adafactor(
            decay_exponent=-settings["beta2_decay"],
            min_scale=settings["eps"][1],
            max_rms=settings["d"],
        ),
        weight_decay=WeightDecay(rate=settings["weight_decay"], bias=1.0),
        schedule=WarmupConstant(peak=settings["lr"]),
        parameters=parameters,
        steps=5,
    )
    state = optimizer.init(params)
    for step in range(5):
        grads = {name: jnp.asarray(GOLDEN[f"in.grads.{name}"][step]) for name in NAMES}
        params, state = optimizer.update(grads, state, params, jnp.int32(step))
        for name in NAMES:
            expected = GOLDEN[f"out.adafactor.{name}"][step]
            atol = GOLDEN.tolerance("adafactor")
            np.testing.assert_allclose(params[name], expected, rtol=0, atol=atol)


def test_stacked_layers_and_experts_are_taken_one_by_one():
    grads, values = random(3, 4, 6, 2, 5), jnp.cos(random(3, 4, 6, 2, 5))
    stacked = declared(4, 6, 2, 5, contracted=1, batched=1, repeats=3)
    whole = direction(stacked, grads, values)
    one = declared(6, 2, 5, contracted=1)
    for at in np.ndindex(3, 4):
        assert_same(whole[at], direction(one, grads[at], values[at]))


def test_so_are_stacked_vectors_and_those_of_experts():
    grads, values = random(3, 4, 6), jnp.cos(random(3, 4, 6))
    whole = direction(declared(4, 6, role="bias", batched=1, repeats=3), grads, values)
    one = declared(6, role="bias")
    for at in np.ndindex(3, 4):
        assert_same(whole[at], direction(one, grads[at], values[at]))


@pytest.mark.parametrize(
    ("parameter", "numbers"),
    [
        (declared(6, 2, 5, contracted=1), 6 + 10),
        (declared(2, 5, 6, contracted=2), 10 + 6),
        (declared(4, 6, 8, contracted=1, batched=1, repeats=3), 12 * (6 + 8)),
        (declared(100, 6, role="embedding"), 100 + 6),
        (declared(6, role="scale", repeats=3), 18),
        (declared(2, 5, role="bias"), 10),
    ],
)
def test_a_matrix_costs_a_row_and_a_column_and_a_vector_itself(parameter, numbers):
    transform = Adafactor().transform({"w": parameter})
    params = {"w": jnp.zeros(parameter.full_shape, jnp.bfloat16)}
    state = transform.init(params)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.moments)) == 4 * numbers


def test_directions_are_no_larger_than_the_parameters():
    for size in (1e-6, 1.0, 50.0):
        value = jnp.full((6, 10), size)
        moved = direction(declared(6, 10, contracted=1), random(6, 10), value)
        rms = float(jnp.sqrt(jnp.mean(moved**2)))
        assert rms <= 1.001 * max(size, Adafactor().min_scale)


def test_a_gradient_of_zero_moves_nothing():
    still = direction(declared(6, 10, contracted=1), jnp.zeros((6, 10)), random(6, 10))
    np.testing.assert_array_equal(still, np.zeros((6, 10)))


def test_refuses_a_floor_whose_square_is_no_float32():
    node = types.SimpleNamespace(epsilon=1e-30, min_scale=1e-3, max_rms=1.0)
    assert list(Adafactor.check_config(node)) == [
        "Adafactor epsilon (1e-30) must be at least 1e-18, for its square must be a"
        " float32."
    ]
