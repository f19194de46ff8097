"""Blocks with one scale against loops over them, and where their edges lie."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.block_scales import block_sides, greatest_of_blocks, over_blocks


@pytest.mark.parametrize(
    ("shape", "shared", "size", "expected"),
    [
        ((4096, 11008), (0, 1), 256, (16, 16)),
        ((5120, 40, 128), (0, 1, 2), 256, (16, 1, 16)),
        ((32, 2880, 64), (1, 2), 256, (1, 16, 16)),
        ((32000, 4096), (1,), 256, (1, 256)),
        ((201088, 2880), (1,), 256, (1, 64)),
        ((4096, 4096), (0, 1), 2048, (128, 16)),
        ((8192,), (0,), 2048, (2048,)),
        # No power of two divides these: a last block is shorter.
        ((5001,), (0,), 256, (256,)),
        ((75, 99), (0, 1), 16, (1, 16)),
        ((6, 10), (0, 1), 256, (6, 10)),
    ],
)
def test_blocks_leave_every_dim_as_divisible_as_can_be(shape, shared, size, expected):
    sides = block_sides(shape, shared, size)
    assert sides == expected and np.prod(sides) <= size


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((6, 10), (2, 5)), ((7, 3, 10), (1, 2, 4)), ((37,), (16,)), ((4, 6), (1, 1))],
)
def test_each_block_has_its_greatest_magnitude(shape, sides):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    greatest = greatest_of_blocks(jnp.asarray(x), sides)
    scales = over_blocks(greatest, sides, shape)
    assert scales.shape == shape
    counts = [-(-size // side) for size, side in zip(shape, sides, strict=True)]
    assert greatest.shape == tuple(counts)
    for place in itertools.product(*map(range, counts)):
        pairs = zip(place, sides, strict=True)
        block = tuple(slice(i * side, (i + 1) * side) for i, side in pairs)
        assert greatest[place] == np.max(np.abs(x[block]))
        assert np.all(np.asarray(scales)[block] == greatest[place])
