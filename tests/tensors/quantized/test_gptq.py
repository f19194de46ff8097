"""GPTQ against the formula that the paper derives it from."""

import numpy as np
import pytest

from maxfdl.tensors.hugging_face.quantization.fp8 import block_codec
from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import PackedInt
from maxfdl.tensors.quantized.gptq import gptq

RNG = np.random.default_rng(0)
CODECS = {
    "int4 channel": Codec(PackedInt(4), Block(1, None)),
    "int4 groups": Codec(PackedInt(4), Block(1, 24)),
    "int4 groups of 150": Codec(PackedInt(4), Block(1, 150)),
    "fp8 blocks": block_codec(4, 32),
}


def inputs(tokens: int, width: int) -> np.ndarray:
    """Returns inputs that depend on each other."""
    mixed = RNG.standard_normal((width // 2, width))
    x = RNG.standard_normal((tokens, width // 2)) @ mixed
    return (x + 0.3 * RNG.standard_normal(x.shape)).astype(np.float32)


def by_the_paper(codec: Codec, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Equations 2 and 3: the inverse of H loses a row and a column each time."""
    h = h.astype(np.float64) + 0.01 * np.diag(h).mean() * np.eye(len(h))
    w, inverse = w.astype(np.float64), np.linalg.inv(h)
    found, size = np.empty_like(w), codec.block.of(w.shape)[1]
    for i in range(w.shape[1]):
        if i % size == 0:
            block = codec.scales_of(w[:, i : i + size].astype(np.float32))
            scale = codec.block.spread(block, w.shape)[:, 0].astype(np.float64)
        code = codec.codes.nearest((w[:, i] / scale).astype(np.float32))
        found[:, i] = code * scale
        error = (w[:, i] - found[:, i]) / inverse[i, i]
        w -= error[:, None] * inverse[i]
        inverse -= np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return found


@pytest.mark.parametrize("name", CODECS)
def test_it_is_the_formula_of_the_paper(name):
    codec, x = CODECS[name], inputs(400, 300)
    w = RNG.standard_normal((9, 300)).astype(np.float32)
    moment = x.T @ x
    found = gptq(codec, w, moment).values
    expected = by_the_paper(codec, w, moment)
    # float32 may round a number to the other of two codes, and others then follow.
    assert np.mean(np.isclose(found, expected, rtol=1e-3, atol=1e-4)) > 0.97
    errors = [np.square(x @ (q - w).T).mean() for q in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


@pytest.mark.parametrize("name", CODECS)
def test_outputs_are_nearer_than_those_of_the_nearest_codes(name):
    codec, x = CODECS[name], inputs(400, 96)
    w = RNG.standard_normal((3, 16, 96)).astype(np.float32)
    if name.startswith("int4"):
        w = w[0]
    moment = np.broadcast_to(x.T @ x, (*w.shape[:-2], 96, 96))
    nearest = codec.decode(codec.encode(w), w.shape)
    better = gptq(codec, w, moment).values
    errors = [np.square((q - w) @ x.T).mean() for q in (better, nearest)]
    assert errors[0] < 0.7 * errors[1]
    parts = codec.exactly(gptq(codec, w, moment))
    assert parts is not None
    np.testing.assert_array_equal(codec.decode(parts, w.shape), better)


def test_inputs_that_are_never_seen_have_their_weights_rounded_alone():
    codec, x = CODECS["int4 channel"], inputs(50, 32)
    x[:, [3, 20]] = 0
    w = RNG.standard_normal((5, 32)).astype(np.float32)
    found = gptq(codec, w, x.T @ x).values
    nearest = codec.decode(codec.encode(w), w.shape)
    np.testing.assert_array_equal(found[:, [3, 20]], nearest[:, [3, 20]])
    alone = gptq(codec, w, np.zeros((32, 32))).values
    np.testing.assert_array_equal(alone, nearest)
