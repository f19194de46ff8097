"""Variables of which some arrays lie on disk until they are wanted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from maxfdl.tensors.table import Binding, Slot


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """An array that is not read yet. To `jax.tree` it is a leaf.

    Args:
      abstract: Its shape and type.
      read: Reads it.
    """

    abstract: jax.ShapeDtypeStruct
    read: Callable[[], jax.Array]

    @property
    def dtype(self) -> Any:
        return self.abstract.dtype


class Held:
    """Variables, with those arrays in memory that the binding at hand needs.

    Args:
      variables: Nested dicts of arrays, some of them `OnDisk`.
    """

    def __init__(self, variables: Mapping[str, Any]):
        self._variables = variables
        self._read: dict[int, jax.Array] = {}

    def leaf(self, slot: Slot, suffix: str = "") -> Any:
        """Returns what is at a slot, or beside it, where the name has the suffix."""
        *above, name = slot.path
        node: Any = self._variables[slot.collection]
        for each in above:
            node = node[each]
        return node[f"{name}{suffix}"]

    def array(self, slot: Slot, suffix: str = "") -> jax.Array:
        """Returns that as an array; what is read is held until `in_order` goes on."""
        leaf = self.leaf(slot, suffix)
        if not isinstance(leaf, OnDisk):
            return leaf
        if id(leaf) not in self._read:
            self._read[id(leaf)] = leaf.read()
        return self._read[id(leaf)]

    def in_order(self, bindings: list[Binding]) -> Any:
        """Yields bindings such that each array on disk is read once.

        They stay in their order if no array is on disk.
        """

        def paths(binding: Binding) -> tuple:
            return tuple((slot.collection, slot.path) for slot in binding.slots)

        if any(isinstance(x, OnDisk) for x in jax.tree.leaves(dict(self._variables))):
            bindings = sorted(bindings, key=paths)
        before = None
        for binding in bindings:
            if paths(binding) != before:
                self._read, before = {}, paths(binding)
            yield binding
