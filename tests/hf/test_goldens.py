"""Whole folders against Hugging Face transformers, on the same random weights.

Tolerances are those that the goldens state: 20 times what float32 is off from float64
there, and at least 2e-5; the norm of the gradients within 1e-4 of itself. Greedy ids
are equal.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl import graph, hf
from maxfdl.hf.weights import their_tensors
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.train.loss import NextTokenLoss
from tests import goldens
from tests.hf.variants import (
    FAMILIES,
    VARIANTS,
    cut,
    is_slow,
    loaded,
    varied,
    with_config,
)

CASES = [
    pytest.param(
        (folder, variant),
        id=f"{folder}, {variant}",
        marks=pytest.mark.slow if is_slow(folder, variant) else (),
    )
    for folder, variant in itertools.product(FAMILIES, VARIANTS)
]


def next_token_batch(tokens):
    """Every token but the last of a row is asked for the next one."""
    last = jnp.arange(tokens.shape[1]) == tokens.shape[1] - 1
    return {
        "targets": jnp.roll(tokens, -1, axis=1),
        "weights": jnp.broadcast_to(jnp.where(last, 0.0, 1.0), tokens.shape),
    }


@dataclasses.dataclass(frozen=True)
class Results:
    """What we compute of a golden's tokens, under the names that it has."""

    golden: goldens.Golden
    values: dict[str, Any]

    def assert_near(self, name: str) -> None:
        atol = self.golden.tolerance(name)
        expected = self.golden[name]
        np.testing.assert_allclose(self.values[name], expected, rtol=0, atol=atol)


@pytest.fixture(scope="module", params=CASES)
def results(request) -> Results:
    folder, variant = request.param
    golden, weights = goldens.expected(folder), loaded(folder)
    config, variables = varied(weights.config, variant), weights.variables
    made = graph.build(config).make_model()
    ends = {
        "hidden.embed": cut(config, variables, num_stacks=0),
        "hidden.layer0": cut(config, variables, 1, first_layer=True),
        "hidden.last": cut(config, variables, len(config.model.decoder.stacks)),
    }
    ends = {
        name: (graph.build(short).make_model(), part)
        for name, (short, part) in ends.items()
    }
    loss = NextTokenLoss(CrossEntropy())

    def objective(params, state, tokens):
        output = made.apply({"params": params, "state": state}, tokens)
        term = loss(output, next_token_batch(tokens))["cross_entropy"]
        return term.mean, output.logits

    @jax.jit
    def compute(variables, parts, tokens):
        params, state = variables["params"], variables["state"]
        grad = jax.value_and_grad(objective, has_aux=True)
        (value, logits), gradients = grad(params, state, tokens)
        hidden = {
            name: model.apply(parts[name], tokens).hidden
            for name, (model, _) in ends.items()
        }
        norm = optax.tree.norm(gradients)
        return hidden | {
            "loss": value,
            "logits": logits,
            "grad_norm": norm,
        }, gradients

    parts = {name: part for name, (_, part) in ends.items()}
    values, gradients = compute(variables, parts, jnp.asarray(golden["input_ids"]))
    theirs = hf.Folder(goldens.FOLDER / folder).config
    tree = {"params": gradients, "state": variables["state"]}
    for name, gradient in their_tensors(made, tree, theirs):
        values[f"grad.{name}"] = gradient
    values["greedy_ids"] = greedy(made, variables, golden)
    return Results(golden, values)


def greedy(model, variables, golden) -> np.ndarray:
    """Returns the likeliest tokens one after the other, without a cache."""
    count = golden["greedy_ids"].shape[1]
    start = 12
    logits = jax.jit(functools.partial(model.logits, variables))
    # The tokens to come are 0 until they are known: what comes later is not seen.
    tokens = np.zeros((2, start + count), np.int32)
    tokens[:, :start] = golden["input_ids"][:, :start]
    for place in range(start, start + count):
        best = jnp.argmax(logits(jnp.asarray(tokens))[:, place - 1], axis=-1)
        tokens[:, place] = best
    return tokens[:, start:]


@pytest.mark.parametrize("name", ["hidden.embed", "hidden.layer0", "hidden.last"])
def test_hidden_vectors(results, name):
    results.assert_near(name)


@pytest.mark.parametrize("name", ["logits", "loss"])
def test_outputs(results, name):
    results.assert_near(name)


def test_gradients(results):
    named = [name for name in results.golden if name.startswith("grad.")]
    assert len(named) >= 3
    for name in named:
        results.assert_near(name)


def test_norm_of_the_gradients(results):
    norm, expected = results.values["grad_norm"], results.golden["grad_norm"]
    np.testing.assert_allclose(norm, expected, rtol=1e-4)


def test_greedy_continuation(results):
    expected = results.golden["greedy_ids"]
    np.testing.assert_array_equal(results.values["greedy_ids"], expected)


@pytest.mark.parametrize("folder", FAMILIES)
def test_both_layouts_of_config_json_give_one_graph(folder, tmp_path):
    path = goldens.FOLDER / folder
    if not (path / "config_legacy.json").exists():
        pytest.skip("transformers itself cannot read the old layout of this one")
    legacy = hf.load(with_config(path, "config_legacy.json", tmp_path / folder))
    assert legacy.config.model == loaded(folder).config.model


@pytest.mark.parametrize("folder", FAMILIES)
def test_loading_as_linen_gives_the_graph_of_to_linen(folder):
    linen = hf.load(goldens.FOLDER / folder, backend="linen")
    assert linen.config == varied(loaded(folder).config, "linen, scanned")
    jax.tree.map(
        np.testing.assert_array_equal, linen.variables, loaded(folder).variables
    )
