"""The optimizer against torch, and what it decays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.layers.parameter import Parameter
from maxfdl.mutations import (
    learning_rate_by_role,
    multi_token_prediction,
    selection_bias,
    use_adafactor,
    use_adamw,
    use_lion,
    use_muon,
    use_schedule,
    weight_decay,
)
from maxfdl.ops.initializers import Constant
from maxfdl.optim.adafactor import Adafactor, Factors
from maxfdl.optim.muon import Muon
from maxfdl.optim.optimizer import Optimizer
from maxfdl.optim.schedule_free import ScheduleFree
from maxfdl.optim.schedules import WarmupCosine
from maxfdl.optim.transforms import (
    Adam,
    AdamPax,
    ClipByGlobalNorm,
    Lion,
    RateFactors,
    Sgd,
    WeightDecay,
)
from tests import goldens, tiny

GOLDEN = goldens.algorithm("optimizers")
NAMES = ("w0", "w1", "w2", "b")


def constant(rate):
    return WarmupCosine(peak=rate, final_fraction=1.0)


def declared(**roles):
    return {
        name: Parameter((4,), ("norm",), Constant(), r) for name, r in roles.items()
    }


def make(parameters, **parts):
    defaults = dict(
        clip=None, rule=Adam(), weight_decay=None, schedule=constant(0.1), steps=10
    )
    return Optimizer(parameters=parameters, **defaults | parts)


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
        weight_decay=WeightDecay(rate=settings["weight_decay"], bias=1.0),
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


ROLES = dict(a="kernel", b="embedding", c="scale", d="bias")


def after_one_step(grad, **parts):
    """Returns one number per role, which all start at 2.0."""
    optimizer = make(declared(**ROLES), **parts)
    params = {name: jnp.full(4, 2.0) for name in ROLES}
    grads = jax.tree.map(lambda p: jnp.full_like(p, grad), params)
    new, _ = optimizer.update(grads, optimizer.init(params), params, jnp.int32(0))
    return {name: float(x[0]) for name, x in new.items()}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        # 0.1 of learning rate, 0.5 of decay.
        ({}, dict(a=1.9, b=1.9, c=2.0, d=2.0)),
        (dict(embedding=0.0, scale=0.5), dict(a=1.9, b=2.0, c=1.95, d=2.0)),
    ],
)
def test_each_role_decays_by_its_share(shares, expected):
    new = after_one_step(0.0, weight_decay=WeightDecay(rate=0.5, **shares))
    assert new == pytest.approx(expected)


def test_each_role_has_its_learning_rate_for_direction_and_decay():
    new = after_one_step(
        1.0,
        rule=Sgd(),
        weight_decay=WeightDecay(rate=0.5),
        rate_factors=RateFactors(kernel=2.0, scale=3.0, bias=0.0),
    )
    # The direction is 1, and the decay 1 where there is any.
    expected = dict(a=2.0 - 0.4, b=2.0 - 0.2, c=2.0 - 0.3, d=2.0)
    assert new == pytest.approx(expected)


def test_adam_without_a_first_moment_does_not_store_one():
    one, other = make(ALL, rule=Adam(b1=0.0)), make(ALL, rule=Adam(b1=1e-30))
    for ours, theirs in zip(trajectory(one), trajectory(other), strict=True):
        for name in NAMES:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=5e-7)
    assert not hasattr(one.init(golden_tree("in.init"))[1], "mu")


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


RULES = [Adam(), AdamPax(), Sgd(momentum=0.99), Lion(), Adafactor(), Muon(rest=Adam())]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_averages_of_bfloat16_parameters_are_those_of_float32(rule):
    """In bfloat16 an average of slow decay would stand still."""
    kernel = Parameter((4, 6), ("embed", "mlp"), Constant(), "kernel", 1)
    optimizer = make({"a": kernel}, rule=rule, averaging=ScheduleFree())

    def state_after(dtype, steps=300):
        params = {"a": jnp.zeros((4, 6), dtype)}
        state = optimizer.init(params)
        grads = {"a": jnp.linspace(0.5, 1.0, 24).reshape(4, 6).astype(jnp.bfloat16)}
        update = jax.jit(optimizer.update)
        for step in range(steps):
            new, state = update(grads, state, params, jnp.int32(step))
        assert new["a"].dtype == dtype
        return state

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        state_after(jnp.bfloat16),
        state_after(jnp.float32),
    )


@pytest.mark.parametrize("size", [1e-6, 1e3])
@pytest.mark.parametrize("clip", [None, ClipByGlobalNorm(0.5)], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_parameter_moves_much_further_than_its_reach(rule, clip, size):
    kernel = Parameter((4, 6), ("embed", "mlp"), Constant(), "kernel", 1)
    parts = dict(rate_factors=RateFactors(kernel=3.0), weight_decay=WeightDecay(rate=5))
    optimizer = make({"a": kernel}, rule=rule, clip=clip, schedule=constant(7), **parts)
    rng = np.random.default_rng(0)
    params = {"a": jnp.float32(size * rng.normal(size=(4, 6)))}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(12):
        grads = {"a": jnp.float32(size * rng.normal(size=(4, 6)))}
        norms = map(jnp.linalg.norm, (grads["a"], params["a"]))
        reach = optimizer.reach(jnp.int32(step), *norms)
        if reach > 1e10:  # a guard refuses that
            break
        old, (params, state) = params, update(grads, state, params, jnp.int32(step))
        assert np.max(np.abs(params["a"] - old["a"])) < 100 * reach


def test_the_clip_does_not_count_what_is_frozen():
    """As in torch, where what is frozen has no gradient."""
    parameters = declared(a="kernel", b="embedding")
    optimizer = make(
        parameters,
        rule=Sgd(),
        clip=ClipByGlobalNorm(1.0),
        schedule=constant(1.0),
        rate_factors=RateFactors(embedding=0.0),
    )
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(4, 0.5), "b": jnp.full(4, 1e6)}
    new, _ = optimizer.update(grads, optimizer.init(params), params, jnp.int32(0))
    np.testing.assert_allclose(new["a"], -grads["a"])
    np.testing.assert_array_equal(new["b"], params["b"])


def places_of(optimizer, params):
    """Returns the places of a state whose parameters lie at their own names."""
    names = {name: name for name in params}
    places = optimizer.shardings(params, names, "elsewhere")
    assert jax.tree.structure(places) == jax.tree.structure(optimizer.init(params))
    return places


def test_the_state_lies_where_its_parameter_does():
    """Counters lie elsewhere."""
    optimizer = make(declared(a="kernel", b="scale"), clip=ClipByGlobalNorm(1.0))
    places = places_of(optimizer, {"a": jnp.ones(4), "b": jnp.ones(4)})
    assert places[1].mu == places[1].nu == {"a": "a", "b": "b"}
    assert places[1].count == "elsewhere"


def test_so_it_does_for_each_rule():
    """Rows and columns lie elsewhere, for they have not the parameter's shape."""
    parameters = declared(b="scale") | {
        "a": Parameter((4, 6), ("embed", "mlp"), Constant(), "kernel", 1)
    }
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones(4)}
    muon = make(parameters, rule=Muon(rest=Adam()), averaging=ScheduleFree())
    states = places_of(muon, params)[1].inner_states
    assert states["matrix"].inner_state.momentum["a"] == "a"
    assert states["rest"].inner_state.mu["b"] == "b"
    average = places_of(muon, params)[-1]
    assert average.z == {"a": "a", "b": "b"} and average.total == "elsewhere"
    moments = places_of(make(parameters, rule=Adafactor()), params)[1].moments
    assert moments == {"a": Factors("elsewhere", "elsewhere"), "b": "b"}


def test_a_leaf_belongs_to_the_parameter_with_the_longest_path():
    parameters = {"w": declared(w="scale"), "v": declared(w="scale")["w"]}
    params = {"w": {"w": jnp.ones(4)}, "v": jnp.ones(4)}
    here = {"w": {"w": "ww"}, "v": "v"}
    assert make(parameters).shardings(params, here, "elsewhere")[1].mu == here


@pytest.mark.parametrize(
    ("mutation", "problem"),
    [
        (functools.partial(use_adamw, b1=1.0), "Adam b1 (1.0) must be at least 0 and"),
        (functools.partial(use_adamw, epsilon=0.0), "Adam epsilon (0.0) must be posit"),
        (functools.partial(use_schedule, kind="cosine", peak=-1.0), "peak (-1.0) must"),
        (functools.partial(use_lion, b2=-0.1), "Lion b2 (-0.1) must be at least 0 and"),
        (functools.partial(use_muon, momentum=1.5), "Muon momentum (1.5) must be at"),
        (
            functools.partial(use_adafactor, min_scale=-1.0),
            "Adafactor min_scale (-1.0)",
        ),
        (
            functools.partial(weight_decay, rate=-1.0),
            "WeightDecay rate (-1.0) must not",
        ),
        (
            functools.partial(learning_rate_by_role, bias=-2.0),
            "ByRole bias (-2.0) must",
        ),
        (
            functools.partial(selection_bias, rate=-1e-3),
            "SelectionBias rate (-0.001) m",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(mutation, problem):
    with pytest.raises(ConfigError) as error:
        graph.validate(mutation(tiny.experiment()))
    assert problem in str(error.value)


def test_a_word_that_is_no_choice_is_refused_in_python_too():
    with pytest.raises(MutationError, match="'cosin'.*one of constant, .*'cosine'"):
        use_schedule(tiny.experiment(), kind="cosin")
    with pytest.raises(MutationError, match=r"'dioni'.* must be .* mean 'dion'\?"):
        use_muon(tiny.experiment(), coefficients="dioni")


def test_later_tokens_and_their_loss_come_together():
    config = multi_token_prediction(tiny.experiment(), depth=2)
    config.loss.later_tokens = None
    with pytest.raises(ConfigError, match=r"later_tokens \(2\) and .* must come toget"):
        graph.validate(config)
    with pytest.raises(ConfigError, match=r"\(16\) must be below sequence_length"):
        graph.validate(multi_token_prediction(tiny.experiment(), depth=16))
