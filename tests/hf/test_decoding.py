"""What a model says of a token depends on what came before it in its document alone.

So it is the same with a cache as without one, whatever follows, and whatever else lies
in the row. Reordered sums of float32 are all that may differ: the tolerance is that of
the golden's logits.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.layers.cache import EmptyCache
from maxfdl.ops.mask import NOWHERE
from tests import goldens
from tests.hf.variants import FAMILIES, VARIANTS, loaded, varied

START, STEPS = 30, 64
# Between them all kinds of caches, but for chunks, sinks and stale rotations.
FAST = ("deepseek_v3", "qwen3_next")
CASES = [
    pytest.param(
        (folder, tuple(VARIANTS)[i % len(VARIANTS)]),
        id=folder,
        marks=() if folder in FAST else pytest.mark.slow,
    )
    for i, folder in enumerate(FAMILIES)
]


class Model:
    """A golden model with its compiled functions."""

    def __init__(self, folder: str, variant: str):
        weights = loaded(folder)
        self.model = graph.build(varied(weights.config, variant)).make_model()
        self.variables = weights.variables
        self.atol = goldens.expected(folder).tolerance("logits")
        longest = 64 if folder == "gpt2" else START + STEPS
        rng = np.random.default_rng(0)
        vocab = self.model.network.vocab_size
        self.tokens = jnp.asarray(rng.integers(0, vocab, (2, longest)), jnp.int32)
        self.call = jax.jit(self._call, static_argnames="starts_cache")

    def _call(self, tokens, starts_cache=False, **inputs):
        if starts_cache:
            inputs["cache"] = EmptyCache(self.tokens.shape[1])
        output = self.model.apply(self.variables, tokens, **inputs)
        return output.logits, output.cache

    @functools.cached_property
    def logits(self):
        """Of whole rows, without a cache."""
        return np.asarray(self.call(self.tokens)[0])


@pytest.fixture(scope="module", params=CASES)
def case(request) -> Model:
    return Model(*request.param)


def test_a_cache_changes_nothing(case):
    # The second row is three tokens behind the first.
    length = np.array([START, START - 3])
    place = np.arange(START)
    positions = np.where(place < length[:, None], place, NOWHERE)
    logits, cache = case.call(
        case.tokens[:, :START], starts_cache=True, positions=jnp.int32(positions)
    )
    for row, end in enumerate(length):
        np.testing.assert_allclose(
            logits[row, :end], case.logits[row, :end], rtol=0, atol=case.atol
        )
    rows = np.arange(2)[:, None]
    for _ in range(case.tokens.shape[1] - START):
        places = length[:, None]
        token = case.tokens[rows, places]
        logits, cache = case.call(token, positions=jnp.int32(places), cache=cache)
        expected = case.logits[rows, places]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=case.atol)
        length = length + 1


def test_several_tokens_may_follow_at_once(case):
    half = START + (case.tokens.shape[1] - START) // 2
    cache, logits = None, []
    for start, end in ((0, START), (START, half), (half, case.tokens.shape[1])):
        places = jnp.broadcast_to(jnp.arange(start, end), (2, end - start))
        inputs = {"positions": places} | ({"cache": cache} if cache else {})
        part, cache = case.call(
            case.tokens[:, start:end], starts_cache=cache is None, **inputs
        )
        logits.append(part)
    whole = np.concatenate(logits, axis=1)
    np.testing.assert_allclose(whole, case.logits, rtol=0, atol=case.atol)


def test_what_follows_changes_nothing(case):
    other = case.tokens.at[:, START:].set(case.tokens[::-1, START:])
    logits = case.call(other)[0][:, :START]
    np.testing.assert_allclose(
        logits, case.logits[:, :START], rtol=0, atol=case.atol / 20
    )


def test_documents_in_one_row_do_not_touch_each_other(case):
    # START is past the length that LongRoPE's short factors are for; so is the rest.
    length = case.tokens.shape[1]
    tokens = jnp.concatenate([case.tokens[0, :START], case.tokens[1, : length - START]])
    places = np.concatenate([np.arange(START), np.arange(length - START)])
    segments = np.where(np.arange(length) < START, 1, 2)
    logits, _ = case.call(
        tokens[None],
        positions=jnp.int32(places)[None],
        segment_ids=jnp.int32(segments)[None],
    )
    alone = [case.logits[0, :START], case.logits[1, : length - START]]
    expected = np.concatenate(alone)
    np.testing.assert_allclose(logits[0], expected, rtol=0, atol=case.atol)
