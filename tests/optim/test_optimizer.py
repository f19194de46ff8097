"""The optimizer against torch, and what it decays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.initializers import Constant
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.optim.transforms import (
    Adam,
    AdamPax,
    ClipByGlobalNorm,
    Lion,
    Sgd,
    WeightDecay,
)
from tests import goldens

GOLDEN = goldens.algorithm("optimizers")
NAMES = ("w0", "w1", "w2", "b")


def constant(rate):
    return WarmupCosine(peak=rate, final_fraction=1.0)


def declared(**roles):
    return {
        name: Parameter((4,), ("norm",), Constant(), r) for name, r in roles.items()
    }


def make(parameters, *, clip=None, rule=None, weight_decay=None, schedule=None):
    return Optimizer(
        clip=clip,
        rule=rule or Adam(),
        weight_decay=weight_decay,
        schedule=schedule or constant(0.1),
        parameters=parameters,
        steps=10,
    )


def golden_tree(prefix, at=()):
    return {name: jnp.asarray(GOLDEN[f"{prefix}.{name}"][at]) for name in NAMES}


ALL = declared(w0="kernel", w1="kernel", w2="kernel", b="bias")


def trajectory(optimizer, names=NAMES):
    """Returns the parameters after each of the golden's five steps."""
    params = {name: x for name, x in golden_tree("in.init").items() if name in names}
    state, after = optimizer.init(params), []
    for step in range(5):
        grads = golden_tree("in.grads", step)
        grads = {name: grads[name] for name in names}
        params, state = optimizer.update(grads, state, params, jnp.int32(step))
        after.append(params)
    return after


def assert_agrees(after, run):
    for step, params in enumerate(after):
        for name, ours in params.items():
            expected, atol = GOLDEN[f"out.{run}.{name}"][step], GOLDEN.tolerance(run)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [Adam, AdamPax])
def test_five_steps_of_adamw_agree_with_torch(kind):
    settings = GOLDEN.info["params"]["adamw"]["all_settings"]
    b1, b2 = settings["betas"]
    optimizer = make(
        ALL,
        rule=kind(b1=b1, b2=b2, epsilon=settings["eps"]),
        weight_decay=WeightDecay(settings["weight_decay"], roles=("kernel", "bias")),
        schedule=constant(settings["lr"]),
    )
    assert_agrees(trajectory(optimizer), "adamw")


@pytest.mark.parametrize(
    ("run", "rule"),
    [
        ("sgd", Sgd()),
        ("sgd_nesterov", Sgd(momentum=0.9, nesterov=True)),
    ],
)
def test_five_steps_of_sgd_agree_with_torch(run, rule):
    rate = GOLDEN.info["params"][run]["all_settings"]["lr"]
    optimizer = make(ALL, rule=rule, schedule=constant(rate))
    assert_agrees(trajectory(optimizer), run)


def test_lion_steps_by_the_sign_of_a_blend():
    params, momentum = np.float64(GOLDEN["in.init.w0"]), 0.0
    after = trajectory(make(ALL, rule=Lion(), schedule=constant(0.01)))
    for step in range(5):
        grad = np.float64(GOLDEN["in.grads.w0"][step])
        params = params - 0.01 * np.sign(0.9 * momentum + 0.1 * grad)
        momentum = 0.99 * momentum + 0.01 * grad
        np.testing.assert_allclose(after[step]["w0"], params, rtol=0, atol=1e-6)


@pytest.mark.parametrize("max_norm", ["1.0", "100.0"])
def test_clipping_agrees_with_torch(max_norm):
    clip = ClipByGlobalNorm(float(max_norm)).transform()
    grads = golden_tree("in.grads", 0)
    clipped, _ = clip.update(grads, clip.init(grads))
    for name, expected in golden_tree(f"out.clip_{max_norm}").items():
        np.testing.assert_allclose(clipped[name], expected, rtol=2e-6)
    squares = sum(float(jnp.sum(x**2)) for x in clipped.values())
    norm = min(float(GOLDEN[f"out.clip_{max_norm}.norm"]), float(max_norm))
    assert squares**0.5 == pytest.approx(norm, rel=1e-5)


def test_decay_acts_on_its_roles_alone():
    roles = dict(a="kernel", b="embedding", c="scale", d="bias")
    optimizer = make(declared(**roles), weight_decay=WeightDecay(rate=0.5))
    params = {name: jnp.full(4, 2.0) for name in roles}
    still = jax.tree.map(jnp.zeros_like, params)
    new, _ = optimizer.update(still, optimizer.init(params), params, jnp.int32(0))
    # 0.1 of learning rate, 0.5 of decay.
    expected = {"a": 1.9, "b": 1.9, "c": 2.0, "d": 2.0}
    assert {name: float(x[0]) for name, x in new.items()} == pytest.approx(expected)


def test_decay_is_left_out_of_the_moments():
    parameters = declared(a="kernel")
    params, grads = {"a": jnp.full(4, 2.0)}, {"a": jnp.arange(4.0)}
    states = []
    for decay in (None, WeightDecay(rate=0.5)):
        optimizer = make(parameters, weight_decay=decay)
        state = optimizer.init(params)
        states.append(optimizer.update(grads, state, params, jnp.int32(0))[1])
    moments = [jax.tree.leaves(state) for state in states]
    for one, other in zip(*moments, strict=True):
        np.testing.assert_array_equal(one, other)


def test_clipping_comes_before_the_moments():
    params, grads = {"a": jnp.zeros(4)}, {"a": jnp.full(4, 50.0)}
    optimizer = make(declared(a="kernel"), clip=ClipByGlobalNorm(1.0))
    _, state = optimizer.update(grads, optimizer.init(params), params, jnp.int32(0))
    first_moment = (1 - Adam().b1) * 0.5
    np.testing.assert_allclose(state[1].mu["a"], np.full(4, first_moment), rtol=1e-6)


def test_the_schedule_scales_each_step():
    schedule = WarmupCosine(peak=0.3, warmup_steps=3)
    optimizer = make(declared(a="kernel"), schedule=schedule)
    params, grads = {"a": jnp.zeros(4)}, {"a": jnp.ones(4)}
    state = optimizer.init(params)
    for step in range(4):
        new, state = optimizer.update(grads, state, params, jnp.int32(step))
        # Under a constant gradient Adam's direction is 1.
        moved = float(params["a"][0] - new["a"][0])
        assert moved == pytest.approx(0.1 * step, abs=1e-6)
        assert float(optimizer.learning_rate(jnp.int32(step))) == pytest.approx(
            0.1 * step
        )
        params = new


def test_the_first_moment_may_be_stored_in_fewer_bits():
    optimizer = make(declared(a="kernel"), rule=Adam(moment_dtype="bfloat16"))
    params = {"a": jnp.ones(4)}
    new, state = optimizer.update(
        {"a": jnp.ones(4)}, optimizer.init(params), params, jnp.int32(0)
    )
    assert state[1].mu["a"].dtype == jnp.bfloat16
    assert state[1].nu["a"].dtype == new["a"].dtype == jnp.float32


def test_the_state_lies_where_its_parameter_does():
    """Counters lie elsewhere."""
    optimizer = make(declared(a="kernel", b="scale"), clip=ClipByGlobalNorm(1.0))
    params = {"a": jnp.ones(4), "b": jnp.ones(4)}
    places = optimizer.shardings(params, {"a": "here", "b": "there"}, "everywhere")
    assert places[1].mu == places[1].nu == {"a": "here", "b": "there"}
    assert places[1].count == "everywhere"
    assert jax.tree.structure(places) == jax.tree.structure(optimizer.init(params))
