"""Rope against its formula, pair by pair."""

import fiddle as fdl
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs import rope
from maxfdl.ops.mask import NOWHERE, Places
from maxfdl.ops.rope import Llama3Rope, LongRope, Rope
from tests import goldens


def numpy_rope(x, positions, theta):
    """Turns feature i and feature i + K/2, as one complex number, by its angle."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    angles = positions[:, :, None, None] * theta ** (-np.arange(half) / half)
    turned = pairs * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def at(positions, documents=None):
    documents = None if documents is None else jnp.asarray(documents, jnp.int32)
    return Places(jnp.asarray(positions, jnp.int32), documents)


def random(*shape, seed=0):
    return jnp.float32(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("theta", [100.0, 10_000.0, 500_000.0])
def test_turns_pairs_by_an_angle_that_grows_with_the_position(theta):
    x, positions = random(2, 40, 3, 8), np.tile(np.arange(40), (2, 1))
    turned = Rope(theta=theta)(x, at(positions))
    np.testing.assert_allclose(turned, numpy_rope(x, positions, theta), atol=2e-5)


def test_positions_may_restart_and_differ_between_rows():
    x = random(2, 6, 1, 4)
    positions = np.array([[0, 1, 2, 0, 1, 2], [5, 6, 7, 8, 9, 100]])
    turned = Rope()(x, at(positions))
    np.testing.assert_allclose(turned, numpy_rope(x, positions, 1e4), atol=2e-5)


def test_leaves_position_zero_alone():
    x = random(1, 3, 2, 8)
    np.testing.assert_array_equal(Rope()(x, at([[0, 0, 0]])), x)


def test_products_of_queries_and_keys_depend_on_their_distance_alone():
    q, k = random(1, 1, 1, 16), random(1, 1, 1, 16, seed=1)

    def product(query_at, key_at):
        turn = lambda x, place: Rope(theta=100.0)(x, at([[place]]))  # noqa: E731
        return float(jnp.sum(turn(q, query_at) * turn(k, key_at)))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_answers_in_the_type_of_its_input():
    x = random(1, 3, 2, 8).astype(jnp.bfloat16)
    positions = np.array([[1000, 2000, 3000]])
    turned = Rope()(x, at(positions))
    assert turned.dtype == jnp.bfloat16
    # Angles of thousands of radians stay exact: they are not bfloat16.
    expected = numpy_rope(x, positions, 1e4)
    np.testing.assert_allclose(turned.astype(jnp.float32), expected, atol=0.02)


PUBLISHED = goldens.topic("rope")["params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_turn_as_hugging_face_says(name):
    golden, settings = goldens.algorithm("rope"), PUBLISHED[name]
    ours = fdl.build(
        rope.from_hf(settings["rope_parameters"], settings["max_position_embeddings"])
    )
    theirs = golden[f"out.inv_freq.{name}"]
    np.testing.assert_array_max_ulp(ours.frequencies(settings["head_dim"]), theirs, 1)
    assert ours.magnitude() == pytest.approx(golden.info["scalars"][name], rel=1e-15)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_written_is_read_as_the_same(name):
    settings = PUBLISHED[name]
    length = settings["max_position_embeddings"]
    config = rope.from_hf(settings["rope_parameters"], length, layout="pairs")
    written = rope.to_hf(config)
    assert rope.from_hf(written, length, layout="pairs") == config


def test_a_magnitude_lengthens_what_is_turned():
    x, places = random(1, 5, 2, 8), at([range(5)])
    settings = PUBLISHED["gpt_oss_yarn"]["rope_parameters"]
    long = fdl.build(rope.from_hf(settings, 131072))
    ratio = jnp.linalg.norm(long(x, places)) / jnp.linalg.norm(x)
    assert float(ratio) == pytest.approx(long.magnitude(), rel=1e-6)


def test_neighbours_may_be_the_pairs():
    x, positions = random(2, 9, 3, 8), np.tile(np.arange(9), (2, 1))
    turned = Rope(layout="pairs")(x, at(positions))
    apart = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    expected = numpy_rope(apart, positions, 1e4)
    np.testing.assert_allclose(turned[..., ::2], expected[..., :4], atol=2e-5)
    np.testing.assert_allclose(turned[..., 1::2], expected[..., 4:], atol=2e-5)


def test_a_fraction_of_a_head_may_turn():
    x, positions = random(2, 9, 3, 8), np.tile(np.arange(9), (2, 1))
    turned = Rope(fraction=0.5)(x, at(positions))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    expected = numpy_rope(x[..., :4], positions, 1e4)
    np.testing.assert_allclose(turned[..., :4], expected, atol=2e-5)


def test_long_factors_are_for_documents_past_the_original_length():
    long = LongRope(
        short_factors=(1.0, 2.0),
        long_factors=(3.0, 4.0),
        original_length=5,
        attention_factor=1.5,
    )
    x = random(1, 11, 1, 4)
    pairs = np.float64(x[0, :, 0, :2]) + 1j * np.float64(x[0, :, 0, 2:])

    def expected(positions, factors):
        positions, factors = np.array(positions)[:, None], np.array(factors)
        turned = pairs * np.exp(1j * positions * np.array([1, 0.01]) / factors)
        return 1.5 * np.concatenate([turned.real, turned.imag], axis=-1)

    positions = [*range(6), *range(5)]
    packed = long(x, at([positions], [[1] * 6 + [2] * 5]))[0, :, 0]
    longer, shorter = (expected(positions, f) for f in ((3.0, 4.0), (1.0, 2.0)))
    np.testing.assert_allclose(packed[:6], longer[:6], atol=1e-5)
    np.testing.assert_allclose(packed[6:], shorter[6:], atol=1e-5)

    padded = long(x, at([[*range(5), *[NOWHERE] * 6]]))[0, :, 0]
    np.testing.assert_allclose(
        padded[:5], expected(positions, (1.0, 2.0))[:5], atol=1e-5
    )


def test_wavelengths_may_be_slowed_without_a_blend():
    # As in Llama 4 Scout: what turns less than once in 64 tokens is slow.
    step = Llama3Rope(factor=16.0, low=1.0, high=1.0, original_length=64)
    plain = Rope().frequencies(16)
    slow = 2 * np.pi / plain > 64
    assert slow.any() and not slow.all()
    expected = np.where(slow, plain / 16, plain)
    np.testing.assert_array_max_ulp(step.frequencies(16), expected, 1)
