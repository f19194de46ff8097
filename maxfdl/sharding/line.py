"""The devices along one mesh axis, in a line, and what they send to each other.

A program of one device: it runs inside a `shard_map` over the axis. Every transfer is
a `ppermute`. Letters: A devices, n blocks on each of them.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Place(NamedTuple):
    """A device of the line, and one of its blocks."""

    device: int
    block: int


@dataclasses.dataclass(frozen=True)
class Line:
    """One device of the line, as it sees the others.

    Args:
      axis: The mesh axis, which is manual here; None: the line has one device.
      size: A.
    """

    axis: str | None = None
    size: int = 1

    @property
    def index(self) -> jax.Array | int:
        """Place of this device in the line."""
        return 0 if self.axis is None else lax.axis_index(self.axis)

    def from_before(self, tree: Any) -> Any:
        """Returns the arrays of the device before; the first gets those of the last."""
        return self._sent(tree, [(i, (i + 1) % self.size) for i in range(self.size)])

    def from_after(self, tree: Any) -> Any:
        """Returns the arrays of the device after; the last gets those of the first."""
        return self._sent(tree, [((i + 1) % self.size, i) for i in range(self.size)])

    def dealt(self, tree: Any, blocks: int) -> Any:
        """Deals out blocks to the devices in turn, as one deals cards.

        Block c of all lies on device `c // n` before, and on device `c % A` after; the
        blocks of a device keep their order. Each block that moves is sent once.

        Args:
          tree: Arrays whose first dim counts the blocks of this device.
          blocks: n.
        """
        if self.size == 1 or blocks == 1:
            return tree
        turns = rounds(self.size, blocks)
        return jax.tree.map(lambda x: self._moved(x, turns), tree)

    def collected(self, tree: Any, blocks: int) -> Any:
        """Brings blocks that were `dealt` back to where they were."""
        if self.size == 1 or blocks == 1:
            return tree
        turns = [[(b, a) for a, b in moves] for moves in rounds(self.size, blocks)]
        return jax.tree.map(lambda x: self._moved(x, turns), tree)

    def _moved(self, x: jax.Array, turns: list[list[tuple[Place, Place]]]):
        out = jnp.zeros_like(x)
        for moves in turns:
            sent, put = [0] * self.size, [0] * self.size
            for old, new in moves:
                sent[old.device], put[new.device] = old.block, new.block
            block = lax.dynamic_index_in_dim(x, jnp.array(sent)[self.index])
            block = self._sent(block, [(old.device, new.device) for old, new in moves])
            here = jnp.array(put)[self.index]
            out = lax.dynamic_update_slice_in_dim(out, block, here, 0)
        return out

    def _sent(self, tree: Any, pairs: list[tuple[int, int]]) -> Any:
        if self.axis is None:
            return tree
        axis = self.axis
        return jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), tree)


def rounds(devices: int, blocks: int) -> list[list[tuple[Place, Place]]]:
    """Returns where `dealt` moves each block from and to, in `blocks` rounds.

    In each round every device sends one block and gets one.
    """
    shared = math.gcd(devices, blocks)

    def move(turn: int, device: int) -> tuple[Place, Place]:
        # Devices whose first blocks go to the same device begin with different blocks.
        skip = device // (devices // shared)
        block = turn - turn % shared + (turn + skip) % shared
        new = divmod(device * blocks + block, devices)
        return Place(device, block), Place(new[1], new[0])

    return [[move(turn, i) for i in range(devices)] for turn in range(blocks)]
