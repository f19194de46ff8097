"""Which steps count, against the rule written out in NumPy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.train.guard import Proposal, SkipNonFinite, SkipSpikes


def run(guard, losses, norms, param_norms=None, reaches=None):
    """Returns which steps are accepted, and the last state."""
    state, accepted = guard.init(), []
    look = jax.jit(guard)
    ones = [1.0] * len(losses)
    columns = losses, norms, param_norms or ones, reaches or ones
    for step in zip(*columns, strict=True):
        good, state = look(state, Proposal(*map(jnp.float32, step)))
        accepted.append(bool(good))
    return accepted, state


def expected(losses, norms, window, deviations):
    """The rule of `SkipSpikes`, step by step, in float64."""
    seen, accepted = [], []
    for now in zip(losses, norms, strict=True):
        finite = np.all(np.isfinite(now))
        late = np.float64(seen[-window:])
        is_far = False
        if finite and len(late) >= window // 2:
            limit = late.mean(axis=0) + deviations * late.std(axis=0, ddof=1)
            is_far = np.any(np.float64(now) > limit)
        accepted.append(bool(finite and not is_far))
        if finite:
            seen.append(now)
    return accepted


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_counted(bad):
    losses, norms = [1.0, bad, 1.0, 1.0, 1.0], [1.0, 1.0, bad, bad, 1.0]
    accepted, state = run(SkipNonFinite(), losses, norms)
    assert accepted == [True, False, False, False, True]
    assert (state["skipped"], state["skipped_in_a_row"]) == (3, 0)
    _, state = run(SkipNonFinite(), losses[:-1], norms[:-1])
    assert state["skipped_in_a_row"] == 3


@pytest.mark.parametrize("guard", [SkipNonFinite(), SkipSpikes()])
def test_parameters_that_are_not_finite_or_would_fly_away_are_refused(guard):
    norms, reaches = [1.0, np.nan, np.inf, 1.0], [1e9, 1.0, 1.0, 1e11]
    ones = [1.0] * 4
    accepted, state = run(guard, ones, ones, norms, reaches)
    assert accepted == [True, False, False, False]
    assert (state["skipped"], state["skipped_in_a_row"]) == (3, 3)


@pytest.mark.parametrize("window", [8, 16])
def test_spikes_are_those_of_the_rule(window):
    rng = np.random.default_rng(0)
    losses, norms = 2 + 0.1 * rng.random((2, 60))
    losses[[3, 20, 41]] += [5.0, 5.0, 0.5]
    norms[[30, 55]] += [9.0, 0.4]
    losses[25], norms[26] = np.nan, np.inf
    accepted, _ = run(SkipSpikes(window=window, deviations=4.0), losses, norms)
    assert accepted == expected(losses, norms, window, 4.0)
    assert not all(accepted[30:]) and accepted[3]


def test_a_new_level_is_accepted_in_time():
    losses = [1.0 + 0.01 * (i % 3) for i in range(20)] + [2.0] * 20
    accepted, _ = run(SkipSpikes(window=8), losses, [1.0] * 40)
    assert accepted[:20] == [True] * 20
    assert not accepted[20] and accepted[-1]


def test_bad_settings_are_refused():
    node = types.SimpleNamespace(stop_after=0, window=3, deviations=0.0)
    assert len(list(SkipSpikes.check_config(node))) == 3
