"""What replicas send of their deltas: packed, unpacked, and what is left over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.layers.parameter import Parameter
from maxfdl.mutations import mesh, use_diloco
from maxfdl.ops.initializers import Constant
from maxfdl.report import hlo
from maxfdl.train.exchange import Quantized, TopK, exchanged
from tests import tiny
from tests.train.test_diloco import assert_close, losses, of_two, train

SHAPES = [(3, 16, 40), (3, 16, 4, 8), (7,), (5, 129)]


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def there_and_back(exchange, x):
    return exchange.unpacked(exchange.packed(x), x.shape)


def scale_of(x):
    """Returns the greatest magnitude of the last dims that make 128 numbers."""
    dims = {(3, 16, 40): (1, 2), (3, 16, 4, 8): (1, 2, 3), (7,): (0,), (5, 129): (1,)}
    return jnp.max(jnp.abs(x), axis=dims[x.shape], keepdims=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_within_half_a_step_of_its_scale(shape):
    x = drawn(*shape)
    error = jnp.abs(there_and_back(Quantized("int8"), x) - x)
    assert jnp.all(error <= scale_of(x) / 254 * 1.001)


@pytest.mark.parametrize("shape", SHAPES)
def test_e3m0_is_the_nearest_power_of_two_of_its_scale_or_0(shape):
    x = drawn(*shape)
    scale = scale_of(x)
    levels = np.array([0.0, *(2.0 ** np.arange(-6, 1))])
    ratio = np.asarray(jnp.abs(x) / scale)[..., None]
    nearest = levels[np.argmin(np.abs(ratio - levels), axis=-1)]
    expected = np.sign(x) * nearest * scale
    np.testing.assert_allclose(there_and_back(Quantized("e3m0"), x), expected, 1e-6)


@pytest.mark.parametrize("exchange", [Quantized("int8"), Quantized("e3m0"), TopK()])
def test_nothing_is_sent_as_nothing(exchange):
    zeros = jnp.zeros((3, 50))
    np.testing.assert_array_equal(there_and_back(exchange, zeros), zeros)


@pytest.mark.parametrize("shape", SHAPES)
def test_of_each_chunk_the_largest_are_sent_and_nothing_else(shape):
    x = drawn(*shape)
    sent = there_and_back(TopK(density=0.1, chunk=64, value_bits=32), x)
    flat, sent = np.ravel(x), np.ravel(sent)
    width = min(64, flat.size)
    count = int(np.ceil(0.1 * width))
    for begin in range(0, flat.size, width):
        chunk, found = flat[begin : begin + width], sent[begin : begin + width]
        largest = np.argsort(-np.abs(chunk))[:count]
        expected = np.zeros_like(chunk)
        expected[largest] = chunk[largest]
        np.testing.assert_array_equal(found, expected)


def test_values_in_two_bits_keep_sign_and_place_and_are_near():
    x = drawn(4, 256)
    exact = there_and_back(TopK(density=0.05, chunk=256, value_bits=32), x)
    short = there_and_back(TopK(density=0.05, chunk=256), x)
    np.testing.assert_array_equal(np.sign(short), np.sign(exact))
    sizes = np.abs(np.asarray(exact))
    for row, near in zip(sizes, np.abs(np.asarray(short)), strict=True):
        some = row > 0
        width = row[some].max() - row[some].min()
        assert np.all(np.abs(row - near)[some] <= 0.26 * width)


@pytest.mark.parametrize(
    ("exchange", "size"),
    [
        (Quantized("int8"), 4096 + 8 * 4),
        (Quantized("e3m0"), 2048 + 8 * 4),
        # 41 of 2048 in each of two chunks: indices, four values a byte, two ends.
        (TopK(density=0.02, chunk=2048), 2 * (41 * 2 + 11 + 8)),
    ],
)
def test_the_bytes_are_those_of_the_packed_arrays(exchange, size):
    parameter = Parameter((8, 512), ("embed", "mlp"), Constant(), "kernel")
    assert exchange.bytes(parameter) == size
    packed = jax.tree.leaves(exchange.packed(drawn(8, 512)))
    assert sum(x.nbytes for x in packed) == size


def test_the_mean_is_of_what_was_sent_by_its_shares():
    x, shares = drawn(2, 3, 64), jnp.array([0.25, 0.75])
    exchange = Quantized("int8")
    mean, sent = exchanged(exchange, x, shares, None)
    each = [there_and_back(exchange, x[i]) for i in range(2)]
    np.testing.assert_allclose(sent, jnp.stack(each))
    np.testing.assert_allclose(mean, 0.25 * each[0] + 0.75 * each[1], atol=1e-6)


def diloco(**fields):
    sizes = dict(num_replicas=2, sync_period=3) | fields
    return functools.partial(use_diloco, **sizes)


@pytest.mark.slow
def test_with_all_numbers_sent_sparse_is_averaged_sgd():
    config = tiny.experiment(diloco(exchange="top_k", density=1.0))
    config.trainer.exchange.value_bits = 32
    plain = diloco(learning_rate=1.0, momentum=0.0)
    _, states, _ = train(config, 4)
    _, expected, _ = train(tiny.experiment(plain), 4)
    assert_close(states[-1]["params"], expected[-1]["params"], 1e-6)
    errors = jax.tree.leaves(states[-1]["replicas"]["errors"])
    assert errors and not any(np.any(error) for error in errors)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["e3m0", "top_k"])
def test_replicas_exchange_packed_integers(exchange):
    across = functools.partial(mesh, replica=2, data=1, fsdp=2)
    config = tiny.experiment(diloco(exchange=exchange), across)
    metrics, states, compiled = train(config, 4, devices=4)
    always, at_sync = hlo.crossing(compiled.as_text(), devices=2)
    assert always == [] and {c.kind for c in at_sync} == {"all-gather", "all-reduce"}
    trainer = tiny.program(config, 4).trainer
    sent = trainer.reported(3, metrics[-1])["bytes_sent"]
    gathered = sum(c.payload for c in at_sync if c.kind == "all-gather")
    scalars = sum(c.payload for c in at_sync if c.kind == "all-reduce")
    # Of two replicas, on each of two devices a half; what is too small to cut is whole.
    most = 1.2 if exchange == "e3m0" else 1.8
    assert sent <= gathered <= most * sent and scalars <= 64
    size = sum(p.size for p in jax.tree.leaves(trainer.model.parameters()))
    assert sent < (0.2 if exchange == "e3m0" else 0.05) * 4 * size
    alone, of_one, _ = train(tiny.experiment(diloco(exchange=exchange)), 4)
    np.testing.assert_allclose(losses(metrics), losses(alone), rtol=0, atol=1e-4)
    np.testing.assert_allclose(losses(metrics)[:3], losses(of_two()[0])[:3], atol=1e-5)


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(MutationError, match="density .0.1. belongs to exchange=top_k"):
        tiny.experiment(diloco(density=0.1))
    with pytest.raises(MutationError, match="exchange .'int7'. must be one of"):
        tiny.experiment(diloco(exchange="int7"))
    with pytest.raises(ConfigError, match="TopK density .1.5. must be above 0"):
        graph.build(tiny.experiment(diloco(exchange="top_k", density=1.5)))
