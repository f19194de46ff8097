"""MXFP8, MXFP4 and NVFP4 against the formulas of their specifications, in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maxfdl.ops.block_scaling import FORMATS, encode

# Type of a number, the greatest one, its exponent, and how many share a scale.
MX = {
    "mxfp8": (ml_dtypes.float8_e4m3fn, 448.0, 8, 32),
    "mxfp4": (ml_dtypes.float4_e2m1fn, 6.0, 2, 32),
}
code = jax.jit(encode, static_argnames=("dim", "name", "exponents", "tensor_dims"))


def by_ocp(x, name, exponents="down"):
    """The numbers of one block, as section 6.3 of OCP's MX 1.0 converts them."""
    dtype, most, most_exponent, _ = MX[name]
    amax = np.max(np.abs(x))
    if amax == 0:
        return np.zeros(x.shape)
    scale = 2.0 ** (np.floor(np.log2(amax)) - most_exponent)
    if exponents == "up":
        scale = 2.0 ** np.ceil(np.log2(np.float64(amax) / most))
    return np.float64(np.clip(x / scale, -most, most).astype(dtype)) * scale


def by_nvidia(x, of_tensor):
    """The numbers of one block, as appendix C of arXiv 2509.25149 converts them."""
    tensor_scale = np.float32(of_tensor / np.float32(6 * 448))
    scale = np.float32(np.max(np.abs(x)) / np.float32(6)) / tensor_scale
    scale = np.float32(np.clip(scale, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn))
    by = scale * tensor_scale
    return np.float64(np.clip(x / by, -6, 6).astype(ml_dtypes.float4_e2m1fn)) * by


def in_blocks(x, name, exponents="up"):
    """An array along its last dim, each block by itself."""
    size = FORMATS[name].size
    of_tensor = np.max(np.abs(x))
    out = np.zeros(x.shape)
    for row in np.ndindex(x.shape[:-1]):
        for i in range(0, x.shape[-1], size):
            block = x[*row, i : i + size]
            of_block = (
                by_nvidia(block, of_tensor)
                if name == "nvfp4"
                else by_ocp(block, name, exponents)
            )
            out[*row, i : i + size] = of_block
    return out


def sample(*shape):
    """Numbers of many magnitudes, with zeros among them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 20, size=shape[:-1] + (1,))
    x[0, :16] = 0
    return np.float32(x)


WAYS = [("mxfp8", "down"), ("mxfp8", "up"), ("mxfp4", "down"), ("mxfp4", "up")]


@pytest.mark.parametrize(("name", "exponents"), [*WAYS, ("nvfp4", "down")])
def test_numbers_are_those_of_the_specification(name, exponents):
    x = sample(40, 75)  # a last block of 11
    blocks = code(jnp.asarray(x), 1, name, exponents=exponents)
    numbers = np.float64(blocks.numbers())
    if blocks.tensor_scale is not None:
        numbers = numbers * np.float64(blocks.tensor_scale)
    assert numbers.shape == x.shape
    np.testing.assert_allclose(numbers, in_blocks(x, name, exponents), rtol=2e-7)
    assert blocks.scales.shape == (40, -(-75 // FORMATS[name].size))


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_lie_along_any_dim(name):
    x = sample(3, 5, 40)
    by_last = code(jnp.asarray(x), 2, name).numbers()
    by_first = code(jnp.asarray(x.transpose(2, 0, 1)), 0, name).numbers()
    np.testing.assert_array_equal(np.transpose(by_first, (1, 2, 0)), by_last)


def test_a_greatest_number_beyond_that_of_the_format_is_clipped_or_not():
    x = jnp.array([[1.9, 1.0, *[0.0] * 30]])
    down = code(x, 1, "mxfp8", exponents="down").numbers()
    np.testing.assert_array_equal(down[0, :2], [1.75, 1.0])
    up = code(x, 1, "mxfp8", exponents="up").numbers()
    np.testing.assert_array_equal(up[0, :2], [1.875, 1.0])
    # The greatest number of the format itself needs no greater scale.
    x = jnp.array([[1.75, *[0.0] * 31]])
    scales = [code(x, 1, "mxfp8", exponents=e).scales for e in ("down", "up")]
    assert np.float32(scales[0]) == np.float32(scales[1]) == 2.0**-8


def test_each_kernel_of_several_has_a_scale_of_its_own():
    x = sample(4, 32, 6) * np.float32(10.0) ** np.arange(4)[:, None, None]
    blocks = code(jnp.asarray(x, jnp.float32), 1, "nvfp4", tensor_dims=(1, 2))
    expected = np.max(np.abs(x), axis=(1, 2)) / (6 * 448)
    np.testing.assert_allclose(blocks.tensor_scale, expected, rtol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e38])
def test_whatever_numbers_there_are_scales_are_finite_and_no_zero(name, value):
    x = jnp.zeros((2, 32)).at[0, 0].set(value)
    blocks = code(x, 1, name)
    assert blocks.tensor_scale is None or 0 < blocks.tensor_scale < np.inf
    scales = np.float32(blocks.scales)
    assert np.all((scales > 0) & np.isfinite(scales))
    assert np.all(np.isfinite(np.float32(blocks.numbers())))
    assert not np.any(np.float32(blocks.numbers()[1]))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_shows_in_its_block_and_changes_no_other(name, value):
    x = np.ones((2, 64), np.float32)
    clean = np.float32(code(jnp.asarray(x), 1, name).numbers())
    x[0, 3] = value
    numbers = np.float32(code(jnp.asarray(x), 1, name).numbers())
    size = FORMATS[name].size
    assert np.all(np.isnan(numbers[0, :size]))
    np.testing.assert_array_equal(numbers[0, size:], clean[0, size:])
    np.testing.assert_array_equal(numbers[1], clean[1])
