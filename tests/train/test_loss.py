"""The objective: sums over weighted tokens, divided by weights known before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.model import Output
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.train.loss import STUDENT, NextTokenLoss, Term
from tests.ops.test_cross_entropy import whole_kernel

ROWS, TOKENS, WIDTH, VOCAB = 4, 6, 5, 9


@pytest.fixture
def output():
    rng = np.random.default_rng(0)
    hidden = jnp.float32(rng.normal(size=(ROWS, TOKENS, WIDTH)))
    kernel = jnp.float32(rng.normal(size=(WIDTH, VOCAB)))
    return Output(hidden, whole_kernel(kernel), state={}, sinks={}, cache={})


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return {
        "targets": jnp.asarray(rng.integers(0, VOCAB, (ROWS, TOKENS)), jnp.int32),
        "weights": jnp.asarray(rng.integers(0, 2, (ROWS, TOKENS)), jnp.float32),
    }


def test_is_the_mean_over_weighted_tokens(output, batch):
    term = NextTokenLoss(CrossEntropy())({STUDENT: output}, batch)["cross_entropy"]
    chances = np.asarray(jax.nn.softmax(output.logits))
    rows, tokens = np.nonzero(batch["weights"])
    picked = chances[rows, tokens, np.asarray(batch["targets"])[rows, tokens]]
    assert float(term.weight) == len(rows)
    np.testing.assert_allclose(term.mean, -np.mean(np.log(picked)), rtol=1e-6)


def test_every_term_has_its_own_name(output, batch):
    terms = NextTokenLoss(CrossEntropy(z_loss=0.1))({STUDENT: output}, batch)
    assert terms.keys() == {"cross_entropy", "z_loss"}
    assert float(terms["z_loss"].mean) > 0


def test_halves_of_a_batch_add_up_to_the_whole(output, batch):
    loss = NextTokenLoss(CrossEntropy(z_loss=0.1))
    whole = loss({STUDENT: output}, batch)
    halves = [
        loss(
            {STUDENT: dataclasses.replace(output, hidden=output.hidden[part])},
            {name: value[part] for name, value in batch.items()},
        )
        for part in (slice(0, 2), slice(2, 4))
    ]
    for name, term in whole.items():
        added = jax.tree.map(jnp.add, *(half[name] for half in halves))
        np.testing.assert_allclose(added.mean, term.mean, rtol=1e-6)


def test_without_weights_loss_and_gradients_are_zero(output, batch):
    empty = batch | {"weights": jnp.zeros((ROWS, TOKENS))}

    def objective(output):
        terms = NextTokenLoss(CrossEntropy(z_loss=0.1))({STUDENT: output}, empty)
        return sum(term.mean for term in terms.values())

    value, grads = jax.value_and_grad(objective)(output)
    assert float(value) == 0.0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_a_term_without_weight_is_zero():
    assert float(Term(jnp.float32(0.0), jnp.float32(0.0)).mean) == 0.0
    assert float(Term(jnp.float32(3.0), jnp.float32(0.5)).mean) == 6.0
