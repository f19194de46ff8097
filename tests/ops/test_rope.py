"""Rope against its formula, pair by pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.rope import Rope


def numpy_rope(x, positions, theta):
    """Turns feature i and feature i + K/2, as one complex number, by its angle."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    angles = positions[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def random(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("theta", [100.0, 10_000.0, 500_000.0])
def test_turns_pairs_by_an_angle_that_grows_with_the_position(theta):
    x, positions = random(2, 40, 3, 8), np.tile(np.arange(40), (2, 1))
    turned = Rope(theta)(x, jnp.int32(positions))
    np.testing.assert_allclose(turned, numpy_rope(x, positions, theta), atol=2e-5)


def test_positions_may_restart_and_differ_between_rows():
    x = random(2, 6, 1, 4)
    positions = np.array([[0, 1, 2, 0, 1, 2], [5, 6, 7, 8, 9, 100]])
    turned = Rope()(x, jnp.int32(positions))
    np.testing.assert_allclose(turned, numpy_rope(x, positions, 1e4), atol=2e-5)


def test_leaves_position_zero_alone():
    x = random(1, 3, 2, 8)
    np.testing.assert_array_equal(Rope()(x, jnp.zeros((1, 3), jnp.int32)), x)


def test_products_of_queries_and_keys_depend_on_their_distance_alone():
    q, k = random(1, 1, 1, 16), random(1, 1, 1, 16, seed=1)

    def product(query_at, key_at):
        turn = lambda x, at: Rope(100.0)(x, jnp.full((1, 1), at, jnp.int32))  # noqa: E731
        return float(jnp.sum(turn(q, query_at) * turn(k, key_at)))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_answers_in_the_type_of_its_input():
    x = random(1, 3, 2, 8).astype(jnp.bfloat16)
    positions = np.array([[1000, 2000, 3000]])
    turned = Rope()(x, jnp.int32(positions))
    assert turned.dtype == jnp.bfloat16
    # Angles of thousands of radians stay exact: they are not bfloat16.
    expected = numpy_rope(x, positions, 1e4)
    np.testing.assert_allclose(turned.astype(jnp.float32), expected, atol=0.02)
