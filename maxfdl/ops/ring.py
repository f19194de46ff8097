"""Devices that share the tokens of rows: who has what, and how they exchange it.

Letters: B rows, T tokens, H heads.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

Axis = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices along a mesh axis, each with a number.

    Args:
      axis: Name of the mesh axis.
      size: n.
    """

    axis: Axis
    size: int

    @property
    def number(self) -> jax.Array:
        """The number of this device."""
        return lax.axis_index(self.axis)

    def shift(self, tree: Any, by: int) -> Any:
        """Returns what the device `by` places before this one has, going round."""
        pairs = [(i, (i + by) % self.size) for i in range(self.size)]
        return self._exchanged(tree, pairs)

    def before(self, tree: Any, by: int = 1) -> Any:
        """Returns what the device `by` places before this one has; zeros on the first,
        which have none before them."""
        return self._exchanged(tree, [(i, i + by) for i in range(self.size - by)])

    def mirrored(self, tree: Any) -> Any:
        """Returns what the device has that is as far from the other end."""
        pairs = [(i, self.size - 1 - i) for i in range(self.size)]
        return self._exchanged(tree, pairs)

    def _exchanged(self, tree: Any, pairs: list[tuple[int, int]]) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, self.axis, pairs), tree)


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a mesh cuts the queries, keys and values of a call.

    Args:
      sharding: A `maxfdl.sharding.Sharding`.
      rows, heads, tokens: Mesh axes that cut these dims. Heads of queries and of keys
        are cut alike, or not at all.
    """

    sharding: Any
    rows: Axis | None
    heads: Axis | None
    tokens: Axis

    @classmethod
    def of(cls, sharding: Any | None, heads: int, kv_heads: int) -> "Cut | None":
        """Returns the cut by the rules; None if they leave the tokens of a row
        together."""
        if sharding is None:
            return None
        rows, by, tokens = sharding.spec(("batch", "heads", "sequence"))
        if tokens is None:
            return None
        of_keys = sharding.spec(("batch", "kv_heads" if heads != kv_heads else "heads"))
        return cls(sharding, rows, by if by == of_keys[1] else None, tokens)

    def size(self, axes: Axis | None) -> int:
        return math.prod(map(self.sharding.size, names_of(axes or ())))

    @property
    def ring(self) -> Ring:
        return Ring(self.tokens, self.size(self.tokens))

    @property
    def features(self) -> PartitionSpec:
        """Of an array [B, T, H, ...]."""
        return PartitionSpec(self.rows, self.tokens, self.heads, None)

    @property
    def places(self) -> PartitionSpec:
        """Of an array [B, T]."""
        return PartitionSpec(self.rows, self.tokens)

    def run(self, function: Callable, in_specs: Any, out_specs: Any) -> Callable:
        """Returns `function` run by each device on its shards."""
        return self.sharding.on_each(function, in_specs, out_specs)

    def highest(self, per_head: jax.Array, *more: Axis) -> jax.Array:
        """Returns the maximum over all devices with these heads, inside of `run`."""
        axes = [*more, self.tokens, self.rows]
        names = [name for each in axes if each for name in names_of(each)]
        return lax.pmax(per_head, tuple(names))


def names_of(axes: Axis) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes
