"""Causal convolution against its sum written out, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops import convolution
from maxfdl.ops.mask import NOWHERE, Places
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding

ROWS, WIDTH = 2, 4
causal_convolution = jax.jit(convolution.causal_convolution)


def numpy_convolution(x, kernel, documents):
    """Sums over the tokens of a document up to each."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    y = np.zeros_like(x)
    for b, t in np.ndindex(x.shape[:2]):
        for back in range(min(len(kernel), t + 1)):
            if documents[b][t - back] == documents[b][t]:
                y[b, t] += kernel[len(kernel) - 1 - back] * x[b, t - back]
    return y


def inputs(tokens, *channels, width=WIDTH):
    rng = np.random.default_rng(tokens)
    x = jnp.asarray(rng.normal(size=(ROWS, tokens, *channels)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(width, *channels)), jnp.float32)


def one_document(tokens, start=0):
    return Places(jnp.tile(jnp.arange(start, start + tokens), (ROWS, 1)), None)


def packed(documents):
    documents = np.asarray(documents)
    positions = [[sum(row[:t] == row[t]) for t in range(len(row))] for row in documents]
    return Places(jnp.int32(positions), jnp.int32(documents))


@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
@pytest.mark.parametrize("channels", [(3,), (2, 3)])
def test_sums_over_the_last_tokens(tokens, channels):
    x, kernel = inputs(tokens, *channels)
    y, last = causal_convolution(x, kernel, one_document(tokens))
    expected = numpy_convolution(x, kernel, np.zeros((ROWS, tokens)))
    np.testing.assert_allclose(y, expected, atol=1e-6)
    padded = np.pad(x, ((0, 0), (WIDTH - 1, 0)) + ((0, 0),) * len(channels))
    np.testing.assert_array_equal(last, padded[:, -(WIDTH - 1) :])


def test_documents_do_not_reach_into_each_other():
    x, kernel = inputs(9, 3)
    documents = [[1, 1, 1, 1, 1, 2, 2, 3, 3], [1, 2, 3, 3, 3, 3, 3, 3, 3]]
    y, last = causal_convolution(x, kernel, packed(documents))
    expected = numpy_convolution(x, kernel, documents)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert not np.any(last[0, 0]), "an earlier document leaves zeros"
    np.testing.assert_array_equal(last[0, 1:], x[0, -2:])
    np.testing.assert_array_equal(last[1], x[1, -3:])


def test_not_even_infinity_crosses_a_boundary():
    x, kernel = inputs(9, 3)
    x = x.at[:, :5].set(jnp.inf)
    y, last = causal_convolution(x, kernel, packed([[1] * 5 + [2] * 4] * ROWS))
    assert np.all(np.isfinite(y[:, 5:])) and np.all(np.isfinite(last))


@pytest.mark.parametrize("cuts", [[4], [1, 2, 3], [*range(1, 9)]])
def test_calls_go_on_where_the_last_one_stopped(cuts):
    x, kernel = inputs(9, 3)
    whole, whole_last = causal_convolution(x, kernel, one_document(9))
    last, parts = None, []
    for start, end in zip([0, *cuts], [*cuts, 9], strict=True):
        places = one_document(end - start, start)
        y, last = causal_convolution(x[:, start:end], kernel, places, last)
        parts.append(y)
    np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(last, whole_last)


def test_padding_is_not_remembered():
    x, kernel = inputs(6, 3)
    before = jnp.ones((ROWS, WIDTH - 1, 3))
    positions = np.full((ROWS, 6), NOWHERE)
    positions[0, :2] = [7, 8]
    places = Places(jnp.int32(positions), None)
    y, last = causal_convolution(x, kernel, places, before)
    short = Places(places.positions[:, :2], None)
    alone, _ = causal_convolution(x[:, :2], kernel, short, before)
    np.testing.assert_array_equal(y[0, :2], alone[0])
    np.testing.assert_array_equal(last[0], jnp.concatenate([before[0, 2:], x[0, :2]]))
    np.testing.assert_array_equal(last[1], before[1])


def test_a_document_that_begins_forgets_what_was_before():
    x, kernel = inputs(2, 3)
    before = jnp.full((ROWS, WIDTH - 1, 3), 1e6)
    fresh = causal_convolution(x, kernel, one_document(2))
    for again, new in zip(
        causal_convolution(x, kernel, one_document(2), before), fresh, strict=True
    ):
        np.testing.assert_array_equal(again, new)


def test_a_width_of_one_remembers_nothing():
    x, kernel = inputs(5, 3, width=1)
    y, last = causal_convolution(x, kernel, one_document(5))
    np.testing.assert_array_equal(y, x * kernel[0])
    assert last.shape == (ROWS, 0, 3)


def test_gradients_stay_within_documents():
    x, kernel = inputs(9, 3)
    places = packed([[1] * 5 + [2] * 4] * ROWS)

    def second(x):
        return jnp.sum(causal_convolution(x, kernel, places)[0][:, 5:])

    gradient = jax.grad(second)(x)
    assert not np.any(gradient[:, :5]) and np.all(gradient[:, 5:])


def test_sums_are_float32_and_results_in_the_type_of_the_inputs():
    x, kernel = (y.astype(jnp.bfloat16) for y in inputs(9, 3))
    y, last = causal_convolution(x, kernel, one_document(9))
    assert y.dtype == last.dtype == jnp.bfloat16
    wholes = (z.astype(jnp.float32) for z in (x, kernel))
    expected, _ = causal_convolution(*wholes, one_document(9))
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


# On a mesh.


def of_shards(context, tensor):
    shape = MeshShape(fsdp=1, context=context, tensor=tensor)
    mesh = shape.build(jax.devices()[: context * tensor])
    return functools.partial(
        convolution.convolution_of_shards,
        sharding=Sharding(mesh, AxisRules()),
        channels=("kv_heads", "head_dim"),
    )


@pytest.mark.parametrize(
    "documents",
    [
        # They begin at, before and after the first token of a shard of four.
        [[1] * 4 + [2] * 6 + [3] * 6, [1] * 7 + [2] * 4 + [3] * 5],
        # Taps reach over two shards of two tokens.
        [[1] * 8, [1] * 3 + [2] * 5],
    ],
)
def test_taps_reach_into_shards_before(documents):
    x, kernel = inputs(len(documents[0]), 2, 3)
    places = packed(documents)
    # Only segments say where the last document begins.
    later = places.segment_ids == 3
    places = Places(places.positions + 5 * later, places.segment_ids)

    def plain(x, kernel, places):
        return convolution.causal_convolution(x, kernel, places)[0]

    def run(convolve):
        y, backward = jax.vjp(lambda *given: convolve(*given, places), x, kernel)
        return y, *backward(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    for found, expected in zip(
        jax.jit(lambda: run(of_shards(4, 2)))(), run(plain), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6)
