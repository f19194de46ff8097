"""Blocks are dealt out in rounds in which every device sends one and gets one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from maxfdl.sharding.line import Line, rounds


def test_each_block_moves_once_and_each_device_sends_and_gets_one_a_round():
    for devices, blocks in itertools.product(range(1, 9), range(1, 9)):
        moved = []
        for moves in rounds(devices, blocks):
            assert sorted(old.device for old, _ in moves) == [*range(devices)]
            assert sorted(new.device for _, new in moves) == [*range(devices)]
            moved += moves
        numbers = [old.device * blocks + old.block for old, _ in moved]
        assert sorted(numbers) == [*range(devices * blocks)]
        for number, (_, new) in zip(numbers, moved, strict=True):
            assert new == (number % devices, number // devices)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [2, 3])
def test_blocks_are_dealt_in_turn_and_collected_again(blocks):
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("stage",))
    spec = PartitionSpec("stage")

    def on_devices(function):
        return jax.jit(
            jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
        )

    line, x = Line("stage", 4), jnp.arange(4 * blocks)
    dealt = on_devices(lambda x: line.dealt(x, blocks))(x)
    np.testing.assert_array_equal(dealt.reshape(4, blocks), x.reshape(blocks, 4).T)
    again = on_devices(lambda x: line.collected(line.dealt(x, blocks), blocks))(x)
    np.testing.assert_array_equal(again, x)
