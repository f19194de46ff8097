"""Masks against loops over pairs of positions."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.mask import Causal, Chunked, Mask, Places, SlidingWindow

RULES = {
    "causal": (Causal(), lambda q, k: k <= q, 20),
    "window": (SlidingWindow(3), lambda q, k: k <= q and q - k < 3, 3),
    "chunks": (Chunked(4), lambda q, k: k <= q and q // 4 == k // 4, 4),
}


@pytest.mark.parametrize("name", RULES)
def test_who_sees_whom_in_a_document(name):
    rule, expected, _ = RULES[name]
    positions = jnp.arange(20)[None]
    seen = Mask.within(rule, Places(positions, None)).dense()
    loop = [[expected(q, k) for k in range(20)] for q in range(20)]
    np.testing.assert_array_equal(seen[0], loop)


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_seen_further_back_than_the_reach(name):
    rule, _, reach = RULES[name]
    seen = Mask.within(rule, Places(jnp.arange(20)[None], None)).dense()
    assert int(seen.sum(axis=-1).max()) == rule.reach(20) == reach


@pytest.mark.parametrize("name", RULES)
def test_a_packed_document_sees_what_it_would_alone(name):
    rule, _, _ = RULES[name]
    positions = jnp.asarray([[*range(7), *range(9)]])
    segments = jnp.asarray([[1] * 7 + [2] * 9])
    seen = Mask.within(rule, Places(positions, segments)).dense()[0]
    alone = Mask.within(rule, Places(jnp.arange(9)[None], None)).dense()[0]
    np.testing.assert_array_equal(seen[7:, 7:], alone)
    assert not seen[7:, :7].any() and not seen[:7, 7:].any()
