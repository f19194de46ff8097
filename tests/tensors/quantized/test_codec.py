"""Codecs by themselves: scales by formula, rounding, and both ways together."""

import ml_dtypes
import numpy as np
import pytest

from maxfdl.tensors.hugging_face.quantization.fp8 import block_codec
from maxfdl.tensors.hugging_face.quantization.mxfp4 import CODEC as GPT_OSS
from maxfdl.tensors.quantized.codec import Block, Codec
from maxfdl.tensors.quantized.codes import Float4, Float8, Int8, PackedInt

BFLOAT16, UINT8 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint8)
CODECS = {
    "fp8 blocks": block_codec(16, 24),
    "fp8 tensor": block_codec(None, None),
    "fp8 channel": Codec(Float8(), Block(1, None), scale_dtype=BFLOAT16),
    "int8 channel": Codec(Int8(), Block(1, None)),
    "int8 channel, float16 scales": Codec(
        Int8(), Block(1, None), scale_dtype=np.dtype(np.float16)
    ),
    "int4 groups": Codec(PackedInt(4), Block(1, 24), scale_dtype=BFLOAT16),
    "int3 groups": Codec(PackedInt(3), Block(1, 10)),
    "mxfp4": Codec(Float4(), Block(1, 32), scale_dtype=UINT8),
    "mxfp8": Codec(Float8(), Block(1, 32), scale_dtype=UINT8),
}
RNG = np.random.default_rng(0)


def weight(*shape: int) -> np.ndarray:
    """Returns numbers of many magnitudes, with a block of zeros and a negative peak."""
    w = RNG.standard_normal(shape) * np.exp2(RNG.integers(-8, 8, shape))
    w[..., :16, :32] = 0
    w[..., 17, 0] = -np.abs(w).max() * 1.5
    return w.astype(np.float32)


def stored_shape(codec: Codec, parts: dict[str, np.ndarray]):
    shapes = {part: x.shape for part, x in parts.items()}
    told = tuple(map(int, parts["_shape"])) if "_shape" in parts else None
    shape = codec.stored_shape(shapes, told)
    assert codec.problem(shape, shapes) is None
    return shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (40, 64)) for name in CODECS]
    + [(name, (3, 40, 64)) for name in ("fp8 blocks", "fp8 channel", "mxfp4")],
)
def test_what_is_written_is_read_and_written_again_to_the_bit(name, shape):
    codec, w = CODECS[name], weight(*shape)
    parts = codec.encode(w)
    specs = codec.specs(shape)
    assert {part: (x.shape, x.dtype) for part, x in parts.items()} == specs
    found = codec.decode(parts, stored_shape(codec, parts))
    again = codec.encode(found)
    assert {part: x.tobytes() for part, x in again.items()} == {
        part: x.tobytes() for part, x in parts.items()
    }
    np.testing.assert_array_equal(codec.decode(again, shape), found)


GRIDS = {
    Float8: np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    Float4: np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn),
    Int8: np.arange(-127, 128),
    PackedInt: np.arange(-3, 4),
}


@pytest.mark.parametrize("name", sorted(CODECS.keys() - {"int4 groups"}))
def test_each_code_is_the_nearest(name):
    codec, w = CODECS[name], weight(20, 64)
    scales = codec.scales_of(w)
    grid = GRIDS[type(codec.codes)].astype(np.float32)
    grid = grid[np.isfinite(grid)]
    found = codec.decode(codec.pack(codec.codes_of(w, scales), scales), w.shape)
    spread = codec.block.spread(scales, w.shape)
    for i, columns in codec.block.columns_of(w.shape):
        ours, exact = found[:, columns], w[:, columns]
        nearest = np.abs(grid * spread[:, i, None, None] - exact[..., None]).min(-1)
        np.testing.assert_allclose(np.abs(ours - exact), nearest, rtol=1e-4, atol=1e-6)


def test_the_scale_of_a_block_is_its_greatest_magnitude_by_that_of_the_format():
    w = np.zeros((3, 5), np.float32)
    w[0, 0], w[1, 4], w[2, 3] = 448, -896, 1e-30
    parts = block_codec(2, 3).encode(w)
    np.testing.assert_array_equal(
        parts["_scale_inv"],
        np.float32([[1, 2], [1, np.float32(1e-30) / np.float32(448)]]),
    )
    assert parts[""].astype(np.float32)[1, 4] == -448


def test_powers_of_two_are_those_of_the_standard_on_microscaling():
    w = np.zeros((4, 32), np.float32)
    w[0, 0], w[1, 1], w[2, 2] = 6, 7.9, 0.26
    parts = CODECS["mxfp4"].encode(w)
    np.testing.assert_array_equal(parts["_scale"][:, 0], [127, 127, 123, 127])
    found = CODECS["mxfp4"].decode(parts, w.shape)
    assert (found[0, 0], found[1, 1], found[2, 2]) == (6, 6, 0.25)


def test_experts_of_gpt_oss_have_their_inputs_in_blocks():
    w = weight(2, 64, 24)
    parts = GPT_OSS.encode(w)
    assert parts["_blocks"].shape == (2, 24, 2, 16) and parts["_scales"].shape == (
        2,
        24,
        2,
    )
    found = GPT_OSS.decode(parts, (2, 24, 64))
    same = CODECS["mxfp4"]
    expected = same.decode(same.encode(w.swapaxes(1, 2)), (2, 24, 64))
    np.testing.assert_array_equal(found, expected.swapaxes(1, 2))


def test_a_last_block_may_be_smaller():
    codec, w = block_codec(16, 24), weight(37, 61)
    found = codec.decode(codec.encode(w), w.shape)
    for r in range(0, 37, 16):
        for c in range(0, 61, 24):
            alone = w[r : r + 16, c : c + 24]
            expected = codec.decode(codec.encode(alone), alone.shape)
            np.testing.assert_array_equal(found[r : r + 16, c : c + 24], expected)


def test_codes_of_four_bits_are_the_numbers_of_products_but_for_the_sign_of_0():
    x = np.random.default_rng(0).normal(0, 3, 4096).astype(np.float32)
    numbers = Float4().numbers
    nearest = Float4().nearest(x)
    np.testing.assert_array_equal(nearest, numbers.decode(numbers.encode(x)))
    small = nearest == 0
    assert np.array_equal(np.signbit(nearest[small]), np.signbit(x[small]))
