"""The cache of tokens as a ring, one document a row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.cache import CacheFormat, EmptyCache, TokenCache
from maxfdl.ops.mask import NOWHERE
from tests.layers.families import CASES


def entries(positions):
    """Two entries that tell whose token they are."""
    at = jnp.asarray(positions, jnp.float32)
    return at[..., None], jnp.stack([at + 0.5, -at], axis=-1)


def written(slots, *calls):
    cache = TokenCache.empty(slots, entries(calls[0]))
    for positions in calls:
        cache = cache.write(entries(positions), jnp.asarray(positions, jnp.int32))
    return cache


def held(cache):
    """The positions that each row holds, after a look at what lies beside them."""
    first, second = cache.entries
    known = np.asarray(cache.positions) < NOWHERE
    at = np.where(known, np.asarray(cache.positions), 0)
    np.testing.assert_array_equal(first[..., 0] * known, at)
    np.testing.assert_array_equal(second[..., 0] * known, (at + 0.5) * known)
    return [sorted(row[mask].tolist()) for row, mask in zip(at, known, strict=True)]


def test_an_empty_cache_holds_nothing():
    assert held(TokenCache.empty(3, entries([[0], [0]]))) == [[], []]


def test_it_holds_the_newest_tokens_of_each_row():
    assert held(written(4, [[0, 1], [0, 1]], [[2], [2]])) == [[0, 1, 2]] * 2
    assert held(written(2, [[0, 1], [0, 1]], [[2], [2]])) == [[1, 2]] * 2


def test_of_a_long_call_only_the_end_is_held():
    assert held(written(3, [list(range(8))])) == [[5, 6, 7]]


def test_padding_is_never_held():
    assert held(written(3, [[0, 1, 2, 3], [0, 1, NOWHERE, NOWHERE]])) == [
        [1, 2, 3],
        [0, 1],
    ]


def test_a_row_that_rests_keeps_what_it_holds():
    assert held(written(2, [[0, 1], [0, 1]], [[NOWHERE], [2]])) == [[0, 1], [1, 2]]


FORMATS = {"int8": (CacheFormat("int8"), 1 / 254), "fp8": (CacheFormat("e4m3"), 1 / 16)}


@pytest.mark.parametrize("format, error", FORMATS.values(), ids=FORMATS)
def test_in_8_bits_a_vector_errs_by_its_own_scale_and_zeros_stay_zeros(format, error):
    vectors = np.random.default_rng(0).normal(size=(2, 3, 2, 8)).astype(np.float32)
    vectors[0, 1] *= 1e4
    vectors[1, 2, 0] = 0
    positions = jnp.asarray([[0, 1, 2]] * 2)
    cache = TokenCache.empty(4, [vectors], format).write([vectors], positions)
    (codes_and_scales,) = cache.entries
    assert codes_and_scales["codes"].dtype.itemsize == 1
    assert codes_and_scales["scales"].shape == (2, 4, 2, 1)
    (read,) = cache.read([vectors])
    assert read.dtype == vectors.dtype
    most = np.max(np.abs(vectors), axis=-1, keepdims=True)
    assert np.all(np.abs(read[:, :3] - vectors) <= 1.001 * error * most)
    np.testing.assert_array_equal(read[:, 3], 0)


@pytest.mark.parametrize(
    "name, layer",
    [
        ("int8", "Attention"),
        ("fp8", "LatentAttention"),
        pytest.param("fp8", "Attention", marks=pytest.mark.slow),
        pytest.param("int8", "LatentAttention", marks=pytest.mark.slow),
    ],
)
def test_attention_sees_what_it_cached_in_8_bits(name, layer):
    format, error = FORMATS[name]
    plain = CASES[layer]
    cached = dataclasses.replace(
        plain,
        factory=lambda family: functools.partial(plain.factory(family), cache=format),
    )
    models = [case.model("nnx") for case in (plain, cached)]
    variables = models[0].init(jax.random.key(0))
    assert jax.tree.structure(models[1].parameters()) == jax.tree.structure(
        models[0].parameters()
    )
    first, second = [decoded(model, variables) for model in models]
    # Of the prompt, nothing is read from a cache.
    np.testing.assert_array_equal(second[0], first[0])
    difference = np.abs(second[1] - first[1])
    assert 0 < np.max(difference) <= 4 * error * np.max(np.abs(first[1]))


def decoded(model, variables):
    """Hidden vectors of a prompt, and of two tokens that follow one by one."""
    tokens = jnp.asarray([[3, 1, 4, 1, 5, 9, 2]])

    @functools.partial(jax.jit, static_argnames="start")
    def call(tokens, positions, cache=None, start=False):
        cache = EmptyCache(8) if start else cache
        out = model.apply(variables, tokens, positions=positions, cache=cache)
        return out.hidden, out.cache

    hidden, cache = call(tokens[:, :5], jnp.arange(5)[None], start=True)
    after = []
    for place in (5, 6):
        new, cache = call(tokens[:, place : place + 1], jnp.asarray([[place]]), cache)
        after.append(new)
    return hidden, jnp.concatenate(after, axis=1)
