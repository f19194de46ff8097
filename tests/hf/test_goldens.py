"""Whole folders against Hugging Face transformers, on the same random weights.

Tolerances are those that the goldens state: 20 times what float32 is off from float64
there, and at least 2e-5; the norm of the gradients within 1e-4 of itself. Greedy ids
are equal.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maxfdl import graph, hf
from maxfdl.ops.cross_entropy import CrossEntropy
from maxfdl.tensors.writing import their_tensors
from maxfdl.train.loss import STUDENT, NextTokenLoss
from tests import goldens
from tests.hf.variants import (
    FAMILIES,
    VARIANTS,
    cut,
    each_family,
    loaded,
    varied,
    with_config,
)

FAST = ("llama3", "gemma3", "deepseek_v3")


def _marks(folder, is_its_turn):
    if not is_its_turn:
        return (pytest.mark.slow, pytest.mark.exhaustive)
    return () if folder in FAST else pytest.mark.slow


# Layer by layer the families and ways to run are compared in tests/layers, and step by
# step in tests/experiments: here each folder runs in one way, the ways in turns.
CASES = [
    pytest.param(
        (folder, variant),
        id=f"{folder}, {variant}",
        marks=_marks(folder, i % len(VARIANTS) == j),
    )
    for i, folder in enumerate(FAMILIES)
    for j, variant in enumerate(VARIANTS)
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
    loss = NextTokenLoss(CrossEntropy())

    def objective(params, state, tokens, segment_ids):
        variables = {"params": params, "state": state}
        output = made.apply(variables, tokens, segment_ids=segment_ids)
        term = loss({STUDENT: output}, next_token_batch(tokens))["cross_entropy"]
        return term.mean, output.logits

    @jax.jit
    def compute(variables, tokens, segment_ids):
        params, state = variables["params"], variables["state"]
        grad = jax.value_and_grad(objective, has_aux=True)
        (value, logits), gradients = grad(params, state, tokens, segment_ids)
        return {"loss": value, "logits": logits}, gradients

    tokens = jnp.asarray(golden["input_ids"])
    values, gradients = compute(variables, tokens, jnp.ones_like(tokens))
    values["grad_norm"] = optax.tree.norm(gradients)
    theirs = hf.Folder(goldens.FOLDER / folder).config
    tree = {"params": gradients, "state": variables["state"]}
    for name, gradient in their_tensors(made, tree, theirs):
        values[f"grad.{name}"] = gradient
    greedy, _ = compute(variables, *continued(golden))
    values["greedy_ids"] = greedy_ids(greedy["logits"], golden)
    return Results(golden, values)


START = 12
"""Tokens of each row that the greedy continuation follows."""


def continued(golden) -> tuple[jax.Array, jax.Array]:
    """Returns the beginning of each row with the golden's continuation behind it.

    Those are segment 1; what fills the row is another document.
    """
    tokens, greedy = golden["input_ids"].copy(), golden["greedy_ids"]
    end = START + greedy.shape[1]
    tokens[:, START:end] = greedy
    segments = np.where(np.arange(tokens.shape[1]) < end, 1, 2)
    return jnp.asarray(tokens), jnp.broadcast_to(segments, tokens.shape)


def greedy_ids(logits, golden) -> np.ndarray:
    """Returns the likeliest token after each place up to the continuation's last.

    If it is the golden's each time, so is what we would write token by token.
    """
    count = golden["greedy_ids"].shape[1]
    return np.argmax(logits[:, START - 1 : START - 1 + count], axis=-1)


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


@pytest.mark.slow
@pytest.mark.parametrize("folder", FAMILIES)
def test_hidden_vectors(folder):
    """After the embedding, the first layer and the last: where a difference begins."""
    golden, weights = goldens.expected(folder), loaded(folder)
    config, variables = weights.config, weights.variables
    ends = {
        "hidden.embed": cut(config, variables, num_stacks=0),
        "hidden.layer0": cut(config, variables, 1, first_layer=True),
        "hidden.last": cut(config, variables, len(config.model.decoder.stacks)),
    }
    models = {name: graph.build(c).make_model() for name, (c, _) in ends.items()}

    @jax.jit
    def compute(parts, tokens):
        return {k: models[k].apply(part, tokens).hidden for k, part in parts.items()}

    parts = {name: part for name, (_, part) in ends.items()}
    values = compute(parts, jnp.asarray(golden["input_ids"]))
    for name in ends:
        Results(golden, values).assert_near(name)


@pytest.mark.parametrize("folder", each_family(*FAST))
def test_both_layouts_of_config_json_give_one_graph(folder, tmp_path):
    path = goldens.FOLDER / folder
    if not (path / "config_legacy.json").exists():
        pytest.skip("transformers itself cannot read the old layout of this one")
    legacy = hf.load(with_config(path, "config_legacy.json", tmp_path / folder))
    assert legacy.config.model == loaded(folder).config.model


@pytest.mark.parametrize("folder", each_family(*FAST))
def test_loading_as_linen_gives_the_graph_of_to_linen(folder):
    linen = hf.load(goldens.FOLDER / folder, backend="linen")
    assert linen.config == varied(loaded(folder).config, "linen, scanned")
    jax.tree.map(
        np.testing.assert_array_equal, linen.variables, loaded(folder).variables
    )
