"""Prediction of tokens beyond the next: who sees what, and the loss written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph, hf
from maxfdl.layers.cache import EmptyCache
from maxfdl.mutations import multi_token_prediction, to_linen, vocab_tiling
from maxfdl.train.loss import LaterTokenLoss
from tests import tiny

DEPTH = 2
WITH = functools.partial(multi_token_prediction, depth=DEPTH, coefficient=0.3)


@pytest.fixture(scope="module")
def model():
    return graph.build(tiny.experiment(WITH)).make_model()


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0))


def arrays(batch):
    return {name: jnp.asarray(values) for name, values in batch.items()}


def expected_weights(batch, step):
    """The weight of the target `step` further on, within the document."""
    ids, weights = batch["segment_ids"], np.zeros(batch["weights"].shape)
    for row, column in np.ndindex(*ids.shape):
        there = column + step
        if there < ids.shape[1] and ids[row, column] == ids[row, there] != 0:
            weights[row, column] = batch["weights"][row, there]
    return weights


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_prediction_counts_as_much_as_its_target(step):
    batch = tiny.batch(0)
    found = LaterTokenLoss().token_weights(arrays(batch), step)
    np.testing.assert_array_equal(found, expected_weights(batch, step))


@pytest.mark.parametrize(
    ("tiles", "mutations"),
    [
        (1, ()),
        pytest.param(3, (to_linen,), marks=pytest.mark.slow),
        pytest.param(3, (), marks=pytest.mark.slow),
    ],
)
def test_each_term_is_the_mean_over_its_own_tokens(model, variables, mutations, tiles):
    tiled = functools.partial(vocab_tiling, num_tiles=tiles)
    trainer = tiny.program(tiny.experiment(WITH, tiled, *mutations)).trainer
    batch = tiny.batch(0)
    terms, _ = jax.jit(trainer.evaluate)(variables, arrays(batch))
    given = arrays(batch)
    names = ("segment_ids", "positions")
    places = {name: given[name] for name in names}
    output = model.apply(variables, given["tokens"], **places)
    assert len(output.ahead) == DEPTH
    for k, hidden in enumerate(output.ahead, 1):
        logits = np.float64(output.unembedding(hidden))
        logits -= logits.max(axis=-1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        targets = np.roll(batch["targets"], -k, axis=1)[..., None]
        losses = -np.take_along_axis(log_p, targets, axis=-1)[..., 0]
        weights = expected_weights(batch, k)
        mean = np.sum(weights * losses) / np.sum(weights)
        term = terms[f"later_token_{k}"]
        np.testing.assert_allclose(term.mean, 0.3 / DEPTH * mean, rtol=1e-6)


def test_a_module_is_told_the_tokens_up_to_its_own_and_none_after(model, variables):
    """Module k at place i sees tokens 0 to i + k; the last k places are told nonsense,
    and no other sees them."""
    tokens = np.int32(np.random.default_rng(0).integers(0, tiny.VOCAB, (1, 10)))
    run = jax.jit(lambda tokens: model.apply(variables, tokens).ahead)
    for changed in range(10):
        other = tokens.copy()
        other[0, changed] = (other[0, changed] + 1) % tiny.VOCAB
        for k, (a, b) in enumerate(zip(run(tokens), run(other), strict=True), 1):
            known = np.arange(10 - k)
            differs = np.any(np.asarray(a != b)[0, : 10 - k], axis=-1)
            np.testing.assert_array_equal(differs, known + k >= changed)


def test_calls_that_cache_do_not_run_them(model, variables):
    tokens = jnp.zeros((1, 4), jnp.int32)
    output = model.apply(variables, tokens, cache=EmptyCache(8))
    assert output.ahead == ()
    assert all(path.startswith("decoder/") for path in output.cache)


def test_the_main_network_is_what_it_was(variables):
    plain = graph.build(tiny.experiment()).make_model()
    drawn = plain.init(jax.random.key(0))["params"]
    jax.tree.map(
        np.testing.assert_array_equal,
        drawn,
        {name: variables["params"][name] for name in drawn},
    )


def test_a_folder_of_hugging_face_leaves_them_out(variables, tmp_path):
    config = tiny.experiment(WITH)
    hf.save(tmp_path, config, variables)
    loaded = hf.load(tmp_path)
    assert "later_0" not in loaded.variables["params"]
    tokens = jnp.asarray(tiny.batch(0)["tokens"])
    model = graph.build(config).make_model()
    ours, theirs = (
        model.logits(variables, tokens),
        loaded.model.logits(loaded.variables, tokens),
    )
    np.testing.assert_array_equal(ours, theirs)
