"""Gradients in float16: which scale they are computed at, and that they are right."""

import functools
import types

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError
from maxfdl.mutations import (
    compute_dtype,
    gradient_accumulation,
    loss_scale,
    mesh,
    param_dtype,
    skip_spikes,
    to_linen,
    vocab_tiling,
    zero1,
)
from maxfdl.ops.initializers import Normal
from maxfdl.train.guard import Proposal, SkipNonFinite, SkipSpikes
from maxfdl.train.loss_scale import LossScale
from tests import tiny
from tests.layers.families import assert_same_bits

STEPS = 6
in_float16 = functools.partial(compute_dtype, dtype="float16")


def expected(losses, norms, initial, growth_interval):
    """The rule of `torch.amp.GradScaler`; what a loss of NaN says is ours."""
    scale, streak, scales = initial, 0, []
    for loss, norm in zip(losses, norms, strict=True):
        if np.isfinite(loss):
            streak = streak + 1 if np.isfinite(norm) else 0
            scale = scale if np.isfinite(norm) else scale / 2
            if streak == growth_interval:
                scale, streak = scale * 2, 0
        scales.append(min(max(scale, 1.0), 2.0**24))
        scale = scales[-1]
    return scales


@pytest.mark.parametrize("kind", [SkipNonFinite, SkipSpikes])
@pytest.mark.parametrize("initial", [1.0, 256.0, 2.0**23])
def test_the_scale_follows_the_rule(kind, initial):
    rng = np.random.default_rng(0)
    losses, norms = np.ones((2, 60))
    norms[rng.choice(60, 12)] = np.inf
    norms[[20, 21]] = np.nan
    losses[[5, 6, 40]] = np.nan
    guard = kind(loss_scale=LossScale(initial, growth_interval=3))
    state, look, scales = guard.init(), jax.jit(guard), []
    for loss, norm in zip(losses, norms, strict=True):
        step = Proposal(*map(jnp.float32, (loss, norm, 1.0, 1.0)))
        accepted, state = look(state, step)
        assert accepted == (np.isfinite(loss) and np.isfinite(norm))
        scales.append(float(guard.metrics(state)["loss_scale"]))
    assert scales == expected(losses, norms, initial, 3)
    assert len(set(scales)) > 3


@pytest.mark.slow
def test_no_rounding_comes_of_it():
    """Powers of two: float32 steps are the same at any scale, to the last bit."""
    found = [
        tiny.train(tiny.experiment(functools.partial(loss_scale, initial=i)), STEPS)
        for i in (1.0, 2.0**20)
    ]
    (losses, state), (at_scale, state_at_scale) = found
    assert losses == at_scale
    assert_same_bits(state_at_scale["params"], state["params"])
    unscaled, _ = tiny.train(tiny.experiment(), STEPS)
    np.testing.assert_allclose(losses, unscaled, rtol=1e-6)


@pytest.mark.parametrize(
    "mutations",
    [
        (),
        pytest.param(
            (functools.partial(param_dtype, dtype="float16"), skip_spikes),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (
                functools.partial(mesh, data=2, fsdp=2, tensor=2),
                zero1,
                functools.partial(gradient_accumulation, steps=2),
                functools.partial(vocab_tiling, num_tiles=2),
                to_linen,
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["alone", "parameters too", "on a mesh"],
)
def test_float16_learns_what_float32_does(mutations):
    scaled = functools.partial(loss_scale, initial=2.0**13)
    config = tiny.experiment(in_float16, scaled, *mutations)
    losses, state = tiny.train(config, STEPS, devices=8 if to_linen in mutations else 1)
    assert int(state["guard"]["skipped"]) == 0
    reference, _ = tiny.train(tiny.experiment(), STEPS)
    np.testing.assert_allclose(losses, reference, rtol=2e-3)


def gradients(*mutations):
    """Those of the layers, behind a head so small that they are small, too."""
    config = tiny.experiment(*mutations)
    config.model.head.initializer = fdl.Config(Normal, stddev=1e-5)
    program = tiny.program(config)
    run = jax.jit(program.trainer.gradients_of)
    grads, _ = run(tiny.begin(program), program.place(tiny.batch(0)))
    return grads["decoder"]


@pytest.mark.parametrize("tiles", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_that_float16_does_not_hold_are_right_at_scale(tiles):
    exact = gradients()
    in_tiles = functools.partial(vocab_tiling, num_tiles=tiles)

    def error(initial):
        at_scale = functools.partial(loss_scale, initial=initial)
        found = gradients(in_float16, at_scale, in_tiles)
        difference = jax.tree.map(jnp.subtract, found, exact)
        return optax.tree.norm(difference) / optax.tree.norm(exact)

    assert error(1.0) > 0.5  # what there is to mend
    assert error(2.0**13) < 1e-2  # 2^-11 a rounding


def test_an_overflow_changes_nothing_but_the_scale():
    config = tiny.experiment(in_float16, functools.partial(loss_scale, initial=2.0**24))
    program = tiny.program(config)
    state, run = tiny.begin(program), program.compile_step().run
    before = jax.device_get(state)
    after, metrics = run(state, program.place(tiny.batch(0)))
    assert metrics["skipped"] == 1 and metrics["loss_scale"] == 2.0**23
    for part in ("params", "optimizer", "state", "updates"):
        assert_same_bits(after[part], before[part])


def test_float16_without_it_is_refused():
    for field, mutation in {"dtype": compute_dtype, "param_dtype": param_dtype}.items():
        config = mutation(tiny.experiment(), dtype="float16")
        with pytest.raises(ConfigError, match=rf"model.{field} \(float16\) needs a "):
            graph.validate(config)


def test_numbers_out_of_range_are_refused():
    for initial in (0.5, 3.0, 2.0**25, -4.0):
        node = types.SimpleNamespace(initial=initial, growth_interval=0)
        first, second = LossScale.check_config(node)
        assert first.startswith(f"LossScale initial ({initial}) must be a power of 2")
        assert second.startswith("LossScale growth_interval (0) must be at least 1")
