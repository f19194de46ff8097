"""Attention against softmax written out, query by query."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.mask import Causal, Mask, Places, SlidingWindow

ATTEND = DotProductAttention("xla")
# Around the sizes at which the queries are cut into blocks of other sizes.
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 257, 515]


def numpy_attention(q, k, v, documents):
    """Each query mixes the values of its document up to itself."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    rows, tokens, heads, width = q.shape
    group = heads // k.shape[2]
    for b, t, h in np.ndindex(rows, tokens, heads):
        seen = [s for s in range(t + 1) if documents[b, s] == documents[b, t]]
        keys, values = k[b, seen, h // group], v[b, seen, h // group]
        scores = keys @ q[b, t, h] / math.sqrt(width)
        odds = np.exp(scores - scores.max())
        out[b, t, h] = odds / odds.sum() @ values
    return out


def random_qkv(rows, tokens, heads, kv_heads, width=8, dtype=jnp.float32):
    rng = np.random.default_rng(tokens)
    shapes = [(rows, tokens, n, width) for n in (heads, kv_heads, kv_heads)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def whole_rows(rows, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
    return Mask.within(Causal(), Places(positions, None))


def packed(documents):
    """The mask of rows in which each number stands for a document."""
    documents = np.asarray(documents)
    positions = np.zeros_like(documents)
    for b, t in np.ndindex(documents.shape):
        positions[b, t] = np.sum(documents[b, :t] == documents[b, t])
    places = Places(jnp.int32(positions), jnp.int32(documents))
    return Mask.within(Causal(), places)


def naive(q, k, v, mask):
    """The formula in a few lines of JAX, for its gradients."""
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    scores = jnp.where(mask.dense()[:, None], scores, -jnp.inf)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_every_query_mixes_what_came_before_it(tokens):
    q, k, v = random_qkv(2, tokens, 2, 2)
    expected = numpy_attention(q, k, v, np.ones((2, tokens)))
    out = ATTEND(q, k, v, whole_rows(2, tokens))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_heads_share_keys_in_groups(heads, kv_heads):
    q, k, v = random_qkv(2, 130, heads, kv_heads)
    expected = numpy_attention(q, k, v, np.ones((2, 130)))
    out = ATTEND(q, k, v, whole_rows(2, 130))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_packed_documents_do_not_see_each_other(tokens):
    rng = np.random.default_rng(tokens)
    documents = np.sort(rng.integers(1, 5, (2, tokens)))
    q, k, v = random_qkv(2, tokens, 2, 1)
    expected = numpy_attention(q, k, v, documents)
    out = ATTEND(q, k, v, packed(documents))
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_a_packed_document_reads_as_it_would_alone():
    q, k, v = random_qkv(1, 130, 2, 2)
    out = ATTEND(q, k, v, packed([[1] * 70 + [2] * 60]))
    alone = ATTEND(q[:, 70:], k[:, 70:], v[:, 70:], whole_rows(1, 60))
    np.testing.assert_allclose(out[:, 70:], alone, atol=1e-6)


def test_padding_is_finite_and_touches_nothing():
    q, k, v = random_qkv(2, 140, 2, 2)
    mask = packed([[1] * 90 + [0] * 50, [0] * 140])

    def real(q, k, v):
        return ATTEND(q, k, v, mask)[0, :90]

    noise = 1e3 * (1 - jnp.float32(mask.queries.segment_ids)[:, :, None, None])
    np.testing.assert_array_equal(real(q, k, v), real(q + noise, k + noise, v + noise))
    grads = jax.grad(lambda *x: jnp.sum(ATTEND(*x, mask)), argnums=(0, 1, 2))(q, k, v)
    assert all(np.all(np.isfinite(x)) for x in (ATTEND(q, k, v, mask), *grads))


def test_a_query_that_sees_nothing_is_finite():
    class Blind(Causal):
        def sees(self, queries, keys):
            return super().sees(queries, keys) & False

    q, k, v = random_qkv(1, 130, 2, 2)
    mask = Mask.within(Blind(), whole_rows(1, 130).queries)
    grads = jax.grad(lambda *x: jnp.sum(ATTEND(*x, mask)), argnums=(0, 1, 2))(q, k, v)
    assert all(np.all(np.isfinite(x)) for x in (ATTEND(q, k, v, mask), *grads))


@pytest.mark.parametrize("tokens", LENGTHS)
def test_gradients_are_those_of_the_plain_formula(tokens):
    q, k, v = random_qkv(2, tokens, 4, 2)
    documents = np.sort(np.random.default_rng(0).integers(1, 4, (2, tokens)))
    mask, weight = packed(documents), random_qkv(2, tokens, 4, 4)[1]

    def gradients(attend):
        objective = lambda q, k, v: jnp.sum(weight * attend(q, k, v, mask))  # noqa: E731
        return jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(q, k, v)

    for ours, plain in zip(gradients(ATTEND), gradients(naive), strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


def test_bfloat16_keeps_scores_and_softmax_in_float32():
    q, k, v = random_qkv(1, 130, 2, 2, width=64, dtype=jnp.bfloat16)
    out = ATTEND(q, k, v, whole_rows(1, 130))
    assert out.dtype == jnp.bfloat16
    expected = numpy_attention(q, k, v, np.ones((1, 130)))
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.02)


def test_scores_of_thousands_do_not_overflow():
    q, k, v = random_qkv(1, 65, 1, 1)
    out = ATTEND(1e4 * q, k, v, whole_rows(1, 65))
    expected = numpy_attention(1e4 * q, k, v, np.ones((1, 65)))
    np.testing.assert_allclose(out, expected, atol=1e-2)


def test_auto_picks_by_platform_and_a_choice_stays():
    auto = DotProductAttention()
    platforms = {n: auto.resolve(n, "bfloat16") for n in ("cpu", "gpu", "tpu")}
    assert platforms == {"cpu": "xla", "gpu": "cudnn", "tpu": "tokamax"}
    assert auto.resolve() == "xla"
    assert DotProductAttention("xla").resolve("gpu") == "xla"
    assert DotProductAttention(soft_cap=50.0).resolve("gpu", "bfloat16") == "xla"
    assert auto.resolve("gpu", "float32") == "xla"  # cudnn takes 16 bits


def test_scores_are_scaled_and_capped():
    q, k, v = random_qkv(1, 9, 2, 2)
    out = DotProductAttention("xla", scale=0.7, soft_cap=1.5)(q, k, v, whole_rows(1, 9))
    expected = np.zeros(q.shape)
    for t, h in np.ndindex(9, 2):
        scores = 0.7 * np.float64(k[0, : t + 1, h]) @ np.float64(q[0, t, h])
        odds = np.exp(1.5 * np.tanh(scores / 1.5))
        expected[0, t, h] = odds / odds.sum() @ v[0, : t + 1, h]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_sink_takes_weight_and_gives_nothing():
    q, k, v = random_qkv(2, 140, 4, 2)
    sinks, mask = jnp.float32([-1.0, 0.0, 2.0, 50.0]), whole_rows(2, 140)
    out = ATTEND(q, k, v, mask, sinks)
    # A key of zeros in front whose score is the sink's, and whose value is zero.
    scores = jnp.einsum("bthk,bshk->bhts", q, jnp.repeat(k, 2, 2)) / math.sqrt(8)
    scores = jnp.where(mask.dense()[:, None], scores, -jnp.inf)
    with_sink = jnp.concatenate(
        [jnp.broadcast_to(sinks[None, :, None, None], (2, 4, 140, 1)), scores], -1
    )
    weights = jax.nn.softmax(with_sink)[..., 1:]
    expected = jnp.einsum("bhts,bshk->bthk", weights, jnp.repeat(v, 2, 2))
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_queries_may_be_others_than_the_keys_tokens():
    q, k, v = random_qkv(2, 140, 4, 2)
    whole = ATTEND(q, k, v, Mask.within(SlidingWindow(9), whole_rows(2, 140).queries))
    at = lambda s: Places(whole_rows(2, 140).queries.positions[:, s], None)  # noqa: E731
    late, order = slice(100, 140), np.random.default_rng(0).permutation(140)
    mask = Mask(SlidingWindow(9), at(late), at(order), same=False)
    out = ATTEND(q[:, late], k[:, order], v[:, order], mask)
    np.testing.assert_allclose(out, whole[:, late], atol=1e-6)


def test_values_may_have_another_width():
    q, k, _ = random_qkv(1, 20, 2, 2)
    v = random_qkv(1, 20, 2, 2, width=3)[2]
    out = ATTEND(q, k, v, whole_rows(1, 20))
    padded = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, 5)))
    np.testing.assert_array_equal(out, ATTEND(q, k, padded, whole_rows(1, 20))[..., :3])
