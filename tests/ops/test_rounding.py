"""Stochastic rounding: its mean, its neighbours, and what it keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maxfdl.ops.rounding import stochastically_rounded

ROUNDINGS = 2**14
round_many = jax.jit(stochastically_rounded, static_argnums=1)


def neighbours(x, dtype):
    """Returns the numbers of a type below and above x, by steps of its integers."""
    near = np.asarray(x).astype(dtype)
    step = lambda to: np.nextafter(near, np.asarray(to, dtype))  # noqa: E731
    wide = near.astype(np.float64)
    below = np.where(wide <= x, near, step(-np.inf))
    above = np.where(wide >= x, near, step(np.inf))
    return below.astype(np.float64), above.astype(np.float64)


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        (jnp.bfloat16, [1.003, -1.0001, 3.14159e-20, -2.5e30, 1.99999]),
        # The last two are below its smallest normal number, and below its smallest.
        (jnp.float16, [1.0003, -333.1, 6.2e-5, -3.21e-7, 2.2e-8]),
    ],
    ids=["bfloat16", "float16"],
)
def test_the_mean_of_many_roundings_is_the_number(dtype, numbers):
    x = np.float32(numbers)
    rows = jnp.broadcast_to(x, (ROUNDINGS, len(numbers)))
    found = np.asarray(round_many(rows, dtype, jax.random.key(1)), np.float64)
    below, above = neighbours(np.float64(x), jnp.dtype(dtype))
    assert np.all((found == below) | (found == above))
    share = (np.float64(x) - below) / (above - below)
    deviation = (above - below) * np.sqrt(share * (1 - share) / ROUNDINGS)
    # Five deviations: a right implementation fails once in 300,000 seeds.
    assert np.all(np.abs(found.mean(0) - x) <= 5 * deviation)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_numbers_of_the_type_stay_and_so_does_what_is_not_finite(dtype):
    x = jnp.array([0.0, -0.0, 1.0, -1.5, 2.0**-24, np.inf, -np.inf, np.nan])
    # The NaN whose bits are all ones: one more would make it -0.
    greatest = jax.lax.bitcast_convert_type(jnp.uint32([2**31 - 1]), jnp.float32)
    x = jnp.concatenate([x, greatest])
    rows = jnp.broadcast_to(x, (64, len(x)))
    found = np.asarray(round_many(rows, dtype, jax.random.key(0)), np.float32)
    np.testing.assert_array_equal(found, np.asarray(rows))
    np.testing.assert_array_equal(np.signbit(found[:, :2]), [[False, True]] * 64)


def test_what_is_drawn_depends_on_neither_mesh_nor_cut():
    """Each layer has a key, so that one alone is rounded as all together are."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(jax.random.key(1), (2, 16, 64))
    whole = round_many(x, jnp.bfloat16, keys)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    cut = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "a", "b")))
    sharded = round_many(cut, jnp.bfloat16, keys)
    assert sharded.sharding.spec == cut.sharding.spec
    np.testing.assert_array_equal(sharded, whole)
    round_one = functools.partial(round_many, x[1:], jnp.bfloat16)
    np.testing.assert_array_equal(round_one(keys[1:]), whole[1:])
    assert np.any(round_one(keys[:1]) != whole[1:])
