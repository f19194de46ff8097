"""The cache of tokens as a ring, one document a row."""

import jax.numpy as jnp
import numpy as np

from maxfdl.layers.cache import TokenCache
from maxfdl.ops.mask import NOWHERE


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
