"""Sampling, against transformers' logits processors and counted draws."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops import sampling
from maxfdl.ops.sampling import Sampler
from tests import goldens

GOLDEN = goldens.algorithm("sampling")
SCORES = GOLDEN["in.scores"]


def seen(ids, vocab):
    return jnp.stack([np.isin(np.arange(vocab), row) for row in ids])


STEPS = {
    "temperature_0.7": Sampler(temperature=0.7).kept,
    "top_k_5": lambda x: sampling.keep_top_k(x, 5),
    "top_p_0.8": lambda x: sampling.keep_top_p(x, 0.8),
    "min_p_0.1": lambda x: sampling.keep_min_p(x, 0.1),
    "repetition_1.3": lambda x: sampling.penalised(
        x, seen(GOLDEN["in.input_ids"], x.shape[-1]), 1.3
    ),
}


def keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_a_step_is_that_of_transformers(name, run):
    found = run(STEPS[name])(jnp.asarray(SCORES))
    expected = GOLDEN[f"out.{name}"]
    # XLA multiplies by the reciprocal where torch divides; what is kept is kept as is.
    divides = name.startswith(("temperature", "repetition"))
    np.testing.assert_allclose(found, expected, rtol=2e-7 if divides else 0, atol=0)


def test_all_steps_come_in_the_order_of_transformers():
    sampler = Sampler(
        temperature=0.7, top_k=9, top_p=0.9, min_p=0.05, repetition_penalty=1.3
    )
    was_seen = seen(GOLDEN["in.input_ids"], SCORES.shape[-1])
    for row, told, found in zip(
        SCORES.astype(np.float64),
        was_seen,
        sampler.kept(jnp.asarray(SCORES), was_seen),
        strict=True,
    ):
        row = np.where(told, np.where(row > 0, row / 1.3, row * 1.3), row) / 0.7
        best = np.argsort(-row)[:9]
        p = np.exp(row[best]) / np.exp(row[best]).sum()
        best = best[np.r_[0, np.cumsum(p)[:-1]] < 0.9]
        p = np.exp(row[best]) / np.exp(row[best]).sum()
        best = best[p >= 0.05 * p.max()]
        assert set(np.flatnonzero(np.isfinite(found))) == set(best)
        np.testing.assert_allclose(found[best], row[best], rtol=1e-6)


def test_the_likeliest_token_always_stays():
    logits = jnp.asarray([[0.0, 9.0, 1.0]])
    for step in (
        lambda x: sampling.keep_top_k(x, 1),
        lambda x: sampling.keep_top_p(x, 1e-9),
        lambda x: sampling.keep_min_p(x, 1.0),
    ):
        np.testing.assert_array_equal(np.isfinite(step(logits)), [[False, True, False]])


def test_temperature_zero_takes_the_first_of_equals():
    logits = jnp.asarray([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]])
    assert Sampler()(logits, keys(2)).tolist() == [1, 0]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    rows = 20_000
    drawn = Sampler(temperature=1.0, top_k=3)(jnp.tile(logits, (rows, 1)), keys(rows))
    shares = np.bincount(drawn, minlength=4) / rows
    np.testing.assert_allclose(
        shares, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], atol=0.015
    )
    assert shares[3] == 0


def test_a_row_draws_the_same_whatever_is_beside_it():
    sampler = Sampler(temperature=1.0, top_p=0.9)
    logits, of_rows = jnp.asarray(SCORES), keys(3)
    together = sampler(logits, of_rows).tolist()
    alone = [int(sampler(logits[i : i + 1], of_rows[i : i + 1])[0]) for i in range(3)]
    assert together == alone


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"temperature": -1.0}, "temperature .-1.0. must not be negative"),
        ({"top_k": 0}, "top_k .0. must be at least 1"),
        ({"top_p": 0.0}, "top_p .0.0. must be above 0 and at most 1"),
        ({"min_p": 2.0}, "min_p .2.0. must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty .0.0. must be positive"),
    ],
)
def test_impossible_settings_are_named(fields, message):
    (problem,) = Sampler.check_config(Sampler(**fields))
    assert re.search(message, problem)
