"""Schedule-free learning against the paper's algorithm."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.optim.muon import Muon
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedule_free import ScheduleFree
from maxfdl.optim.schedules import WarmupConstant, WarmupCosine
from maxfdl.optim.transforms import (
    Adam,
    ClipByGlobalNorm,
    RateFactors,
    Sgd,
    WeightDecay,
)

STEPS = 30
PARAMETERS = {"w": Parameter((4, 6), ("embed", "mlp"), Constant(), "kernel", 1)}
START = np.random.default_rng(0).normal(size=(4, 6))


def gradient(w):
    """That of a bowl whose sides are of different steepness."""
    steepness = np.geomspace(0.1, 3.0, 24).reshape(4, 6)
    return steepness * (w - 5.0)


def make(**parts):
    defaults = dict(
        clip=None,
        rule=Adam(b1=0.0),
        weight_decay=WeightDecay(rate=0.1),
        schedule=WarmupConstant(peak=0.05, warmup_steps=5),
        averaging=ScheduleFree(b1=0.9),
        steps=STEPS,
    )
    return Optimizer(parameters=PARAMETERS, **defaults | parts)


def trajectory(optimizer):
    """Yields y, z and x after each step."""
    params = {"w": jnp.float32(START)}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        grads = {"w": jnp.float32(gradient(np.float64(params["w"])))}
        params, state = update(grads, state, params, jnp.int32(step))
        x = optimizer.evaluated(params, state)
        yield params["w"], state[-1].z["w"], x["w"]


def algorithm_1(rate, b1=0.9, b2=0.95, epsilon=1e-8, decay=0.1):
    """Yields y, z and x of the paper's algorithm 1, in float64."""
    x = z = START
    v, total = np.zeros_like(START), 0.0
    for step in range(STEPS):
        y = (1 - b1) * z + b1 * x
        g = gradient(y)
        v = b2 * v + (1 - b2) * g**2
        corrected = v / (1 - b2 ** (step + 1))
        lr = rate(step)
        z = z - lr * g / (np.sqrt(corrected) + epsilon) - lr * decay * y
        total += lr**2
        c = lr**2 / total if total else 1.0
        x = (1 - c) * x + c * z
        yield (1 - b1) * z + b1 * x, z, x


@pytest.mark.parametrize(
    "schedule",
    [
        WarmupConstant(peak=0.05),
        WarmupConstant(peak=0.05, warmup_steps=5),
        WarmupCosine(peak=0.05, warmup_steps=5),
    ],
)
@pytest.mark.parametrize("b1", [0.9, 0.5])
def test_agrees_with_the_paper(schedule, b1):
    def rate(step):
        return float(schedule(jnp.int32(step), STEPS))

    ours = trajectory(make(schedule=schedule, averaging=ScheduleFree(b1)))
    for one, other in zip(ours, algorithm_1(rate, b1), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-6)


def test_agrees_with_optax_where_its_rate_does_not_change():
    theirs = optax.contrib.schedule_free_adamw(0.05, b2=0.95, weight_decay=0.1)
    params = {"w": jnp.float32(START)}
    state = theirs.init(params)
    for y, _, x in trajectory(make(schedule=WarmupConstant(peak=0.05))):
        grads = {"w": jnp.float32(gradient(np.float64(params["w"])))}
        updates, state = theirs.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = optax.contrib.schedule_free_eval_params(state, params)
        np.testing.assert_allclose(y, params["w"], rtol=0, atol=3e-6)
        np.testing.assert_allclose(x, average["w"], rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "parts",
    [
        dict(rule=Sgd(), weight_decay=None),
        dict(rule=Muon(rest=Adam(b1=0.0), momentum=0.0)),
        dict(clip=ClipByGlobalNorm(0.1), rate_factors=RateFactors(kernel=0.5)),
    ],
)
def test_whatever_takes_the_steps_x_is_their_average_and_y_lies_between(parts):
    schedule = WarmupConstant(peak=0.05, warmup_steps=5)
    weights, steps = [], []
    for step, (y, z, x) in enumerate(trajectory(make(**parts))):
        weights.append(float(schedule(jnp.int32(step), STEPS)) ** 2)
        steps.append(np.float64(z))
        if step:  # The first rate is 0.
            mean = np.average(steps, axis=0, weights=weights)
            np.testing.assert_allclose(x, mean, rtol=0, atol=3e-6)
        between = 0.1 * np.float64(z) + 0.9 * np.float64(x)
        np.testing.assert_allclose(y, between, rtol=0, atol=1e-6)


def test_with_one_step_of_sgd_at_a_time_z_moves_as_sgd_does():
    """The direction is taken at y, and scaled once."""
    optimizer = make(rule=Sgd(), schedule=WarmupConstant(peak=0.05))
    before_y, before_z = START, START
    for y, z, _ in trajectory(optimizer):
        direction = gradient(np.float64(before_y)) + 0.1 * np.float64(before_y)
        np.testing.assert_allclose(z, before_z - 0.05 * direction, rtol=0, atol=1e-6)
        before_y, before_z = y, z


def test_the_average_ends_nearer_than_the_last_step_in_noise():
    rng, optimizer = np.random.default_rng(1), make(rule=Sgd(), weight_decay=None)
    params = {"w": jnp.float32(START)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(2000):
        noise = rng.normal(size=START.shape)
        grads = {"w": jnp.float32(gradient(np.float64(params["w"])) + noise)}
        params, state = update(grads, state, params, jnp.int32(step))
    x, z = optimizer.evaluated(params, state)["w"], state[-1].z["w"]
    assert jnp.mean((x - 5.0) ** 2) < 0.3 * jnp.mean((z - 5.0) ** 2)


def test_without_it_the_parameters_are_evaluated():
    optimizer = make(averaging=None)
    params = {"w": jnp.float32(START)}
    assert optimizer.evaluated(params, optimizer.init(params)) is params


def test_a_step_may_take_over_what_it_is_given():
    """Parameters and z start equal, and are not the same array."""
    optimizer = make()

    @jax.jit
    def start():
        params = {"w": jnp.float32(START)}
        return params, optimizer.init(params)

    params, state = start()
    step = jax.jit(optimizer.update, donate_argnums=(1, 2))
    step({"w": jnp.ones((4, 6))}, state, params, jnp.int32(0))


@pytest.mark.parametrize("b1", [0.0, 1.5])
def test_refuses_a_share_from_which_no_average_is_found(b1):
    (problem,) = ScheduleFree.check_config(types.SimpleNamespace(b1=b1))
    assert problem.startswith(
        f"ScheduleFree b1 ({b1}) must lie above 0 and not above 1"
    )
