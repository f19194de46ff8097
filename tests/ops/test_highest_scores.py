"""The highest score of each head, against all scores written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Causal, Mask, Places, SlidingWindow


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [7, 300])  # one block of queries, and several
@pytest.mark.parametrize("rule", [Causal(), SlidingWindow(3)], ids=["causal", "window"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_it_is_the_greatest_visible_one(groups, tokens, rule, scale):
    rng, rows, heads, width = np.random.default_rng(0), 2, 4, 8
    q = rng.normal(size=(rows, tokens, heads, width)).astype(np.float32)
    k = rng.normal(size=(rows, tokens, groups, width)).astype(np.float32)
    ids = np.int32(rng.integers(0, 3, (rows, 1)) + np.arange(tokens) // 4)
    ids[:, -2:] = 0  # padding, which does not count
    q[:, -2:] *= 100.0
    positions = np.broadcast_to(np.int32(np.arange(tokens)), ids.shape)
    mask = Mask.within(rule, Places(jnp.asarray(positions), jnp.asarray(ids)))
    op = DotProductAttention(scale=scale, soft_cap=1.0)
    found = op.highest_scores(jnp.asarray(q), jnp.asarray(k), mask)

    keys = np.repeat(k, heads // groups, axis=2)
    scores = np.einsum("bthk,bshk->bhts", q, keys) * (scale or width**-0.5)
    seen = np.asarray(mask.dense()) & (ids != 0)[:, :, None]
    expected = np.where(seen[:, None], scores, -np.inf).max(axis=(0, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_gradient_flows():
    places = Places(jnp.arange(4)[None], None)
    mask, x = Mask.within(Causal(), places), jnp.ones((1, 4, 2, 2))
    op = DotProductAttention()
    grad = jax.grad(lambda x: jnp.sum(op.highest_scores(x, x, mask)))(x)
    assert not np.any(grad)
