"""Gated units against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.glu import ClampedSwiGlu, Glu

GATE, UP = jnp.float32(np.random.default_rng(0).normal(size=(2, 3, 50)) * 4)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def test_swiglu_is_silu_of_the_gate_times_up():
    expected = GATE * sigmoid(GATE) * UP
    np.testing.assert_allclose(Glu("silu")(GATE, UP), expected, rtol=2e-6)


def test_other_activations_go_by_name():
    np.testing.assert_allclose(Glu("relu")(GATE, UP), np.maximum(GATE, 0) * UP)


def test_clamped_swiglu_cuts_the_gate_above_and_up_on_both_sides():
    gate, up = np.minimum(GATE, 1.5), np.clip(UP, -1.5, 1.5)
    expected = (up + 1) * gate * sigmoid(1.7 * gate)
    actual = ClampedSwiGlu(alpha=1.7, limit=1.5)(GATE, UP)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-7)
    assert np.any(GATE > 1.5) and np.any(UP < -1.5) and np.any(GATE < -1.5)


def test_nothing_flows_back_through_what_was_cut():
    total = lambda gate, up: jnp.sum(ClampedSwiGlu(1.7, 1.5)(gate, up))  # noqa: E731
    d_gate, d_up = jax.grad(total, (0, 1))(GATE, UP)
    assert not np.any(d_gate[GATE > 1.5]) and np.all(d_gate[GATE < -1.5])
    assert not np.any(d_up[np.abs(UP) > 1.5])


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_refuses_a_limit_that_leaves_nothing(limit):
    (problem,) = ClampedSwiGlu.check_config(ClampedSwiGlu(1.7, limit))
    assert problem == f"ClampedSwiGlu limit ({limit}) must be positive."


@pytest.mark.parametrize("glu", [Glu(), ClampedSwiGlu(1.7, 7.0)])
def test_answers_in_the_type_of_its_inputs(glu):
    x = jnp.bfloat16(GATE)
    assert glu(x, x).dtype == jnp.bfloat16
