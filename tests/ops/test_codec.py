"""Kernels in a few bits: groups, scales and codes, by their formulas."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maxfdl.ops.codec import Codec
from maxfdl.ops.numbers import NUMBERS

CODECS = {
    "int8": Codec("int8"),
    "int8 in groups": Codec("int8", inputs=5),
    "int4": Codec("int4", inputs=4),
    "int4, bfloat16 scales": Codec("int4", inputs=32, scales="bfloat16"),
    "nf4": Codec("nf4", inputs=8),
    "fp8 in blocks": Codec("e4m3", inputs=4, outputs=3),
    "mxfp4": Codec("e2m1", inputs=8, scales="e8m0"),
}
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
# No dim is a multiple of a group; an odd number of inputs does not fill its last byte.
SHAPES = [(6, 4), (13, 7), (2, 3, 9, 5)]


def random(*shape):
    return np.float32(np.random.default_rng(0).normal(size=shape))


def groups_of(kernel, codec):
    """Yields the groups of a kernel [..., I, O] as slices, with their place."""
    inputs, outputs = kernel.shape[-2:]
    rows, columns = codec.inputs or inputs, codec.outputs or outputs
    for i in range(0, inputs, rows):
        for o in range(0, outputs, columns):
            place = np.s_[..., i // rows, o // columns]
            yield place, kernel[..., i : i + rows, o : o + columns]


@each_codec
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_as_declared_and_a_group_errs_by_half_a_step_at_most(codec, shape):
    kernel = random(*shape)
    parts = codec.encode(kernel)
    for part, (of_part, dtype) in codec.declare(shape).items():
        assert (parts[part].shape, parts[part].dtype) == (of_part, jnp.dtype(dtype))
    decoded = codec.decode(parts, shape[-2])
    assert decoded.shape == shape
    # The widest gap between two numbers, relative to the greatest: at the top of a
    # group, a power of two may be half of what it need be.
    widest = {
        "int8": 1 / 127,
        "int4": 1 / 7,
        "nf4": 0.31,
        "e4m3": 1 / 14,
        "e2m1": 2 / 3,
    }
    errors = groups_of(np.abs(decoded - kernel), codec)
    for (_, group), (_, error) in zip(groups_of(kernel, codec), errors, strict=True):
        amax = np.max(np.abs(group), axis=(-2, -1))
        assert np.all(
            np.max(error, axis=(-2, -1)) <= 0.51 * widest[codec.numbers] * amax
        )


@each_codec
def test_numpy_and_jax_make_the_same_of_it(codec):
    kernel = random(2, 13, 7)
    ours = codec.encode(kernel)
    traced = jax.jit(codec.encode)(kernel)
    np.testing.assert_array_equal(traced["codes"], ours["codes"])
    # XLA multiplies by the inverse of a constant.
    as_float = [np.float32(parts["scales"]) for parts in (traced, ours)]
    np.testing.assert_allclose(*as_float, rtol=1e-6)
    decode = jax.jit(codec.decode, static_argnums=1)
    np.testing.assert_array_equal(decode(ours, 13), codec.decode(ours, 13))


@each_codec
def test_what_was_decoded_is_coded_as_before(codec):
    kernel = random(13, 7)
    once = codec.decode(codec.encode(kernel), 13)
    np.testing.assert_allclose(codec.decode(codec.encode(once), 13), once, rtol=1e-2)


@each_codec
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e30])
def test_groups_of_zeros_tiny_and_huge_numbers_survive(codec, value):
    kernel = np.full((13, 7), value, np.float32)
    parts = codec.encode(kernel)
    if codec.scales != "e8m0":
        scales = np.float32(parts["scales"])
        assert np.all(np.isfinite(scales) & (scales > 0))
    decoded = codec.decode(parts, 13)
    assert np.all(np.isfinite(decoded))
    if value in (0.0, 1e30):
        np.testing.assert_allclose(decoded, kernel, rtol=0.5)


def test_int8_scales_are_the_greatest_magnitude_by_127():
    kernel = random(13, 7)
    parts = CODECS["int8"].encode(kernel)
    scale = np.max(np.abs(kernel), axis=0, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(parts["scales"], scale)
    np.testing.assert_array_equal(parts["codes"], np.round(kernel / scale))


def test_four_bits_lie_two_in_a_byte_the_even_input_below():
    parts = Codec("int4").encode(np.float32([[7], [-7], [1]]))
    np.testing.assert_array_equal(parts["codes"], [[(1 << 4) | 15], [9]])


def test_fp8_is_that_of_ml_dtypes_and_its_scales_are_those_of_blocks():
    kernel, codec = random(6, 7), CODECS["fp8 in blocks"]
    parts = codec.encode(kernel)
    for place, group in groups_of(kernel, codec):
        scale = np.max(np.abs(group)) / np.float32(448)
        np.testing.assert_array_equal(parts["scales"][place], scale)
        expected = np.float32((group / scale).astype(ml_dtypes.float8_e4m3fn)) * scale
    last = codec.decode(parts, 6)[4:, 6:]
    np.testing.assert_array_equal(last, expected)


def test_mxfp4_is_that_of_ml_dtypes_by_powers_of_two():
    kernel, codec = 3 * random(16, 4), CODECS["mxfp4"]
    parts = codec.encode(kernel)
    for (group, column), exponent in np.ndenumerate(parts["scales"]):
        x = kernel[8 * group : 8 * group + 8, column]
        assert float(exponent) - 127 == np.floor(np.log2(np.max(np.abs(x)))) - 2
        scale = 2.0 ** (float(exponent) - 127)
        inside = np.clip(x / scale, -6, 6)
        expected = np.float32(inside.astype(ml_dtypes.float4_e2m1fn)) * scale
        decoded = codec.decode(parts, 16)[8 * group : 8 * group + 8, column]
        np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("name", ["nf4", "e2m1"])
def test_the_code_is_that_of_the_nearest_number(name):
    x = np.linspace(-1.1, 1.1, 999, dtype=np.float32) * NUMBERS[name].most
    numbers = np.unique(NUMBERS[name].decode(np.arange(16, dtype=np.uint8)))
    nearest = numbers[np.argmin(np.abs(x[:, None] - numbers), axis=1)]
    np.testing.assert_array_equal(
        NUMBERS[name].decode(NUMBERS[name].encode(x)), nearest
    )


def test_half_way_between_two_numbers_mxfp4_rounds_to_even():
    x = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    x = np.concatenate([x, -x])
    expected = np.float32(x.astype(ml_dtypes.float4_e2m1fn))
    e2m1 = NUMBERS["e2m1"]
    np.testing.assert_array_equal(e2m1.decode(e2m1.encode(x)), expected)


@each_codec
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_rounded_is_stored_again_to_the_bit(codec, shape):
    parts = codec.encode(random(*shape))
    numbers, scales = codec.apart(parts, shape[-2])
    np.testing.assert_array_equal(numbers * scales, codec.decode(parts, shape[-2]))
    again = codec.exactly(numbers, scales)
    assert again is not None and again.keys() == parts.keys()
    assert all(again[part].tobytes() == x.tobytes() for part, x in parts.items())
    assert codec.exactly(numbers + np.float32(0.3), scales) is None
    other = scales.copy()
    other[..., 0, 0] *= 3
    assert codec.exactly(numbers, other) is None
