"""Balance terms against transformers' loss and against loops."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from maxfdl.ops import balance
from maxfdl.ops.mask import NOWHERE, Places
from maxfdl.ops.routing import TopK

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "algorithms"
RNG = np.random.default_rng(0)
LOGITS = jnp.float32(RNG.normal(size=(3, 5, 6)))
MASK = jnp.asarray([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0] * 5], bool)


@pytest.fixture(scope="module")
def golden():
    values = load_file(GOLDENS / "moe_load_balancing.safetensors")
    return jax.tree.map(jnp.asarray, values)


@pytest.mark.parametrize("kind", ["", "_masked"])
def test_load_balance_is_the_loss_of_transformers(golden, kind):
    logits_LNE = golden["in.router_logits"]
    mask = golden["in.attention_mask"].astype(bool)
    mask = mask if kind else jnp.ones_like(mask)

    def loss(logits_LNE):
        counts, shares = [], []
        for logits in logits_LNE.reshape(-1, *mask.shape, logits_LNE.shape[-1]):
            choice = TopK(2)(logits)
            counts.append(balance.expert_counts(choice.experts, mask, 8))
            shares.append(balance.probability_sums(choice.scores, mask))
        tokens = jnp.full(len(counts), mask.sum(), jnp.float32)
        return balance.load_balance(jnp.stack(counts), jnp.stack(shares), tokens)

    value, gradient = jax.value_and_grad(loss)(logits_LNE)
    np.testing.assert_allclose(value, golden[f"out.loss{kind}"], rtol=1e-6)
    np.testing.assert_allclose(gradient, golden[f"out.grad{kind}"], rtol=0, atol=1e-7)


def test_load_balance_is_k_when_even_and_grows_to_the_number_of_experts():
    even = balance.load_balance(jnp.full(4, 6), jnp.full(4, 3.0), jnp.float32(12))
    np.testing.assert_allclose(even, 2.0)
    one = balance.load_balance(
        jnp.asarray([12, 0, 0, 0]), jnp.asarray([12.0, 0, 0, 0]), jnp.float32(12)
    )
    np.testing.assert_allclose(one, 4.0)


def test_no_tokens_give_no_nan():
    assert balance.load_balance(jnp.zeros(4), jnp.zeros(4), jnp.float32(0)) == 0
    nothing = jnp.zeros_like(MASK)
    scores = jax.nn.softmax(LOGITS)
    assert not np.any(balance.sequence_balance(scores, 2, nothing))


def test_counts_are_whole_numbers_of_tokens_that_count():
    experts = TopK(2)(LOGITS).experts
    counts = balance.expert_counts(experts, MASK, 6)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(
        counts, np.bincount(np.asarray(experts)[MASK].ravel(), minlength=6)
    )


def test_router_z_is_the_sum_of_squared_log_sums():
    z = np.log(np.exp(np.float64(LOGITS[MASK])).sum(-1))
    np.testing.assert_allclose(balance.router_z(LOGITS, MASK), np.sum(z**2), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_sequence_balance_follows_the_paper(k):
    scores = 1 / (1 + np.exp(-np.float64(LOGITS)))
    expected = []
    for row, mask in zip(scores, np.asarray(MASK), strict=True):
        tokens = row[mask]
        total = 0.0
        for e in range(6):
            among = sum(s[e] >= np.sort(s)[-k] for s in tokens)
            f = 6 / (k * max(len(tokens), 1)) * among
            p = sum(s[e] / s.sum() for s in tokens) / max(len(tokens), 1)
            total += f * p
        expected.append(total)
    actual = balance.sequence_balance(jnp.float32(scores), k, MASK)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_gradients_of_the_balance_terms_reach_only_what_counts():
    def total(logits):
        scores = jax.nn.sigmoid(logits)
        terms = balance.sequence_balance(scores, 2, MASK)
        return jnp.sum(terms) + balance.router_z(logits, MASK)

    gradient = jax.grad(total)(LOGITS)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[~MASK])
    assert np.all(np.any(gradient[MASK], axis=-1))


def test_padding_is_segment_0_or_nowhere():
    positions = jnp.asarray([[0, 1, 0, NOWHERE]])
    assert balance.counted(Places(positions, None)).tolist() == [[True] * 3 + [False]]
    segments = Places(positions, jnp.asarray([[1, 1, 0, 2]]))
    assert balance.counted(segments).tolist() == [[True, True, False, False]]
