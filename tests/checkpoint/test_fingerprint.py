"""Tests of the checksum of array values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from maxfdl.checkpoint import on_host
from maxfdl.checkpoint.fingerprint import (
    checksums_and_finite,
    fingerprint,
    fingerprint_of,
    of_parts,
)

DTYPES = ["float32", "bfloat16", "float8_e4m3fn", "int32", "int4", "uint8", "bool"]
FLOATS = ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "complex64"]
SHAPES = [(), (0,), (37,), (40, 8), (3, 50), (2, 5, 7), (3, 2, 1, 4, 2, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_of_any_one_element_is_found(dtype):
    values = np.zeros((3, 4), dtype)
    before = fingerprint(jnp.asarray(values))
    for index in np.ndindex(3, 4):
        changed = values.copy()
        changed[index] = 1
        assert fingerprint(jnp.asarray(changed)) != before


def test_every_single_bit_counts():
    words = np.random.default_rng(0).integers(0, 2**32, 4, np.uint32)
    before = fingerprint(jnp.asarray(words))
    for bit in range(32):
        flipped = words.copy()
        flipped[2] ^= np.uint32(1 << bit)
        assert fingerprint(jnp.asarray(flipped)) != before


def test_swapped_elements_and_transposed_arrays_are_found():
    array = jnp.arange(12.0).reshape(3, 4)
    swapped = array.at[0, 1].set(array[2, 3]).at[2, 3].set(array[0, 1])
    square = jnp.arange(9.0).reshape(3, 3)
    assert fingerprint(array) != fingerprint(swapped)
    assert fingerprint(square) != fingerprint(square.T)


def test_it_is_the_weighted_sum_that_the_docstring_says():
    array = np.arange(6, dtype=np.uint32).reshape(2, 3) * 123456789
    rows, columns = np.indices((2, 3)).astype(np.uint32) + 1
    weights = rows * np.uint32(2654435761) + columns * np.uint32(2246822519)
    expected = np.sum(array * (2 * weights + 1), dtype=np.uint32)
    assert fingerprint(jnp.asarray(array)) == [(int(expected), True)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(dtype, bad):
    values = jnp.full((5, 7), 3.0, dtype)
    assert fingerprint(values)[0].finite
    assert not fingerprint(values.at[4, 6].set(bad))[0].finite


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int4", "bool"])
def test_what_has_no_fractions_is_finite(dtype):
    assert fingerprint(jnp.full((3,), -1, "int32").astype(dtype))[0].finite


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [("x",), (None, "x"), ()])
def test_sharding_does_not_change_it(kind, spec):
    devices = np.array(jax.devices())
    mesh = Mesh(devices, "x", axis_types=(kind,))
    array = np.random.default_rng(0).normal(size=(8 * devices.size,) * 2)
    array = array.astype(np.float32)
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert fingerprint(sharded) == fingerprint(jnp.asarray(array))


def test_leaves_may_live_on_different_devices():
    devices = jax.devices()
    tree = {
        "a": jax.device_put(jnp.ones(3), devices[0]),
        "b": jax.device_put(jnp.ones(3), devices[-1]),
    }
    first, second = fingerprint(tree)
    assert first == second


def test_minus_zero_and_nan_patterns_are_told_apart():
    bits = np.array([0x7FC00000, 0x7FC00001], np.uint32)
    plain, payload = bits.view(np.float32)
    assert fingerprint(jnp.float32(0.0)) != fingerprint(jnp.float32(-0.0))
    assert fingerprint(jnp.array([plain])) != fingerprint(jnp.array([payload]))


@pytest.mark.parametrize("block", [1, 8, 30, 2**17])
def test_numpy_finds_what_an_accelerator_finds(monkeypatch, found_by_xla, block):
    arrays, expected = found_by_xla
    monkeypatch.setattr(on_host, "_BLOCK", block)
    monkeypatch.setattr(on_host, "_COLUMNS", 16)
    on_host._weights.cache_clear()
    assert fingerprint(arrays) == expected
    on_host._weights.cache_clear()


@pytest.fixture(scope="module")
def found_by_xla():
    """Arrays of many types and shapes, and their fingerprints by the program that
    accelerators run. Some hold a NaN."""
    draw = np.random.default_rng(0)
    arrays = [
        jnp.asarray(draw.standard_normal(shape) * 3).astype(dtype)
        for dtype in (*dict.fromkeys(DTYPES + FLOATS), "float4_e2m1fn")
        for shape in SHAPES
    ]
    arrays += [jnp.full((3, 4), jnp.nan, dtype) for dtype in FLOATS]
    found = jax.device_get(checksums_and_finite(arrays))
    return arrays, [(int(checksum), bool(finite)) for checksum, finite in found]


def test_parts_of_an_array_add_up():
    array = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    parts = [fingerprint_of(array[i][None, :2], (i,)) for i in range(4)]
    parts += [fingerprint_of(array[:, 2:], (0, 2))]
    assert [of_parts(parts)] == fingerprint(jnp.asarray(array))
