"""Dispatch against loops over tokens."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.experts import Capacity, Dropless

RNG = np.random.default_rng(0)
N, K, E, D = 11, 2, 5, 4
# Expert 4 is never chosen.
_CHOSEN = np.int32([RNG.permutation(4)[:K] for _ in range(N)])
CHOSEN = jnp.asarray(_CHOSEN)
X = jnp.float32(RNG.normal(size=(N, D)))
WEIGHTS = jnp.float32(RNG.uniform(0.1, 1.0, (N, K)))
KERNELS = jnp.float32(RNG.normal(size=(E, D, D)))
DISPATCHES = {
    "dropless": Dropless(),
    "room for all": Capacity(E / K),
    "tight": Capacity(1.0),
    "tighter": Capacity(0.3),
}


def kept(dispatch):
    """Returns which copies find a row, taken in the order of tokens."""
    result = np.ones((N, K), bool)
    if isinstance(dispatch, Capacity):
        room = np.full(E, math.ceil(round(dispatch.factor * K * N / E, 6)))
        for n, j in np.ndindex(N, K):
            result[n, j] = room[_CHOSEN[n, j]] > 0
            room[_CHOSEN[n, j]] -= 1
    return result


def mixed(groups, x, weights, kernels):
    """Sends tokens through `tanh(x kernel[e])` and back."""
    rows = groups.gather(x)
    y = jnp.tanh(jnp.einsum("md,mdf->mf", rows, kernels[groups.experts]))
    return groups.combine(y, weights)


def loop(dispatch, x, weights, kernels):
    out = [jnp.zeros(D) for _ in range(N)]
    for n, j in np.argwhere(kept(dispatch)):
        y = jnp.tanh(x[n] @ kernels[_CHOSEN[n, j]])
        out[n] = out[n] + weights[n, j] * y
    return jnp.stack(out)


@pytest.mark.parametrize("name", DISPATCHES)
def test_each_token_gets_the_sum_of_its_experts(name):
    groups = DISPATCHES[name](CHOSEN, E)
    actual = mixed(groups, X, WEIGHTS, KERNELS)
    expected = jax.jit(loop, static_argnums=0)(DISPATCHES[name], X, WEIGHTS, KERNELS)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", DISPATCHES)
def test_gradients_are_those_of_the_loop(name):
    slope = np.cos(np.arange(N * D)).reshape(N, D)
    groups = DISPATCHES[name](CHOSEN, E)
    ours = lambda *args: jnp.sum(mixed(groups, *args) * slope)  # noqa: E731
    theirs = lambda *args: jnp.sum(loop(DISPATCHES[name], *args) * slope)  # noqa: E731
    args = (X, WEIGHTS, KERNELS)
    for actual, expected in zip(
        jax.grad(ours, (0, 1, 2))(*args),
        jax.grad(theirs, (0, 1, 2))(*args),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", DISPATCHES)
def test_rows_know_their_weights_and_send_gradients_back(name):
    groups = DISPATCHES[name](CHOSEN, E)
    rows = groups.gather_weights(WEIGHTS)
    full = np.asarray(groups.copies) < N * K
    np.testing.assert_array_equal(rows[full], WEIGHTS.ravel()[groups.copies[full]])
    assert not np.any(rows[~full])
    gradient = jax.grad(lambda w: jnp.sum(groups.gather_weights(w)))(WEIGHTS)
    np.testing.assert_array_equal(gradient, kept(DISPATCHES[name]))


@pytest.mark.parametrize("name", DISPATCHES)
def test_says_how_many_copies_of_which_tokens_were_dropped(name):
    groups = DISPATCHES[name](CHOSEN, E)
    lost, mask = ~kept(DISPATCHES[name]), jnp.arange(N) % 3 > 0
    assert groups.dropped(jnp.ones(N, bool)) == lost.sum()
    assert groups.dropped(mask) == lost[np.asarray(mask)].sum()
    assert groups.dropped(mask).dtype == jnp.int32


def test_rows_lie_in_the_order_of_experts_then_tokens():
    groups = Dropless()(CHOSEN, E)
    np.testing.assert_array_equal(
        groups.sizes, np.bincount(CHOSEN.ravel(), minlength=E)
    )
    np.testing.assert_array_equal(groups.experts, np.sort(CHOSEN.ravel()))
    for expert in range(E):
        tokens = np.asarray(groups.copies)[np.asarray(groups.experts) == expert] // K
        assert np.all(np.diff(tokens) > 0)


def test_an_empty_row_is_0_even_beside_a_token_that_is_no_number():
    groups = Capacity(E / K)(CHOSEN, E)
    empty = np.asarray(groups.copies) == N * K
    assert np.any(empty)
    assert not np.any(groups.gather(jnp.full_like(X, jnp.nan))[empty])


def test_what_is_in_an_empty_row_reaches_no_token():
    groups = Capacity(0.7)(CHOSEN, E)
    rows = jnp.where((groups.copies == N * K)[:, None], jnp.nan, groups.gather(X))
    assert np.all(np.isfinite(groups.combine(rows, WEIGHTS)))


def test_sums_in_float32_and_answers_in_the_type_of_the_rows():
    groups = Dropless()(CHOSEN, E)
    y = groups.combine(groups.gather(jnp.bfloat16(X)), WEIGHTS)
    assert y.dtype == jnp.bfloat16
    expected = np.float32(jnp.bfloat16(X)) * WEIGHTS.sum(1, keepdims=True)
    np.testing.assert_allclose(np.float32(y), expected, rtol=2.0**-8)


def test_capacity_counts_what_the_factor_says_and_never_more_than_the_tokens():
    rows = lambda factor: len(Capacity(factor)(CHOSEN, E).copies) // E  # noqa: E731
    assert [rows(f) for f in (0.01, 0.5, 1.0, 1.25, 99.0)] == [1, 3, 5, 6, N]
    # In floats 1.1 * 10 is above 11.
    chosen = jnp.zeros((100, 1), jnp.int32)
    assert len(Capacity(1.1)(chosen, 10).copies) == 10 * 11


def test_refuses_a_capacity_of_nothing():
    (problem,) = Capacity.check_config(Capacity(0.0))
    assert problem == "Capacity factor (0.0) must be positive."
