"""Variables of which some arrays lie on disk until they are wanted."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maxfdl.errors import UserError
from maxfdl.layers.on_disk import OnDisk
from maxfdl.model import Model
from maxfdl.ops.state import StateDeclaration
from maxfdl.tensors.arrays import Key
from maxfdl.tensors.table import Binding, Leaves, Slot

Index = tuple[int, ...]


class Held:
    """Variables, with those arrays in memory that the binding at hand needs.

    Args:
      variables: Nested dicts of arrays, some of them `OnDisk`.
    """

    def __init__(self, variables: Mapping[str, Any]):
        self._variables = variables
        self._read: dict[int, tuple[int | None, Any]] = {}

    def leaf(self, slot: Slot, suffix: str = "") -> Any:
        """Returns what is at a slot, or beside it, where the name has the suffix."""
        *above, name = slot.path
        node: Any = self._variables[slot.collection]
        for each in above:
            node = node[each]
        return node[f"{name}{suffix}"]

    def array(
        self, slot: Slot, suffix: str = ""
    ) -> tuple[jax.Array | np.ndarray, Index]:
        """Returns an array that holds what `leaf` is asked for, and its index there.

        Of an array on disk that is the part of one layer, if that can be read alone.
        What is read is held until another part of it is, or `in_order` goes on.
        """
        leaf = self.leaf(slot, suffix)
        if not isinstance(leaf, OnDisk):
            return leaf, slot.index
        read_part = leaf.read_part
        if read_part is None or not slot.index:
            return self._once(leaf, None, leaf.read), slot.index
        first, *rest = slot.index
        return self._once(leaf, first, lambda: read_part(first)), tuple(rest)

    def _once(self, leaf: OnDisk, part: int | None, read: Callable[[], Any]) -> Any:
        which, array = self._read.pop(id(leaf), (None, None))
        if array is None or which != part:
            del array  # memory holds one part
            array = read()
        self._read[id(leaf)] = part, array
        return array

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


def lazily(
    leaves: Leaves,
    model: Model,
    bindings: Sequence[Binding],
    read: Callable[[Binding], list[np.ndarray]],
) -> dict[str, Any]:
    """Returns variables whose arrays are read by the bindings that they are in.

    State that no binding has is as it starts.

    Args:
      leaves: Declarations of the arrays, as they are stored.
      model: Its `param_dtype` is the type of those that declare none.
      bindings: What else has their values.
      read: Returns our arrays of a binding.
    """
    of_array: dict[Key, list[Binding]] = {}
    for binding in bindings:
        for key in {(slot.collection, slot.path) for slot in binding.slots}:
            of_array.setdefault(key, []).append(binding)
    variables: dict[str, Any] = {"params": {}, "state": {}}
    for key, declared in leaves.items():
        node = variables[key[0]]
        for name in key[1][:-1]:
            node = node.setdefault(name, {})
        if isinstance(declared, StateDeclaration) and key not in of_array:
            node[key[1][-1]] = declared.first()
            continue
        dtype = jnp.dtype(declared.dtype or model.network.param_dtype)
        abstract = jax.ShapeDtypeStruct(declared.full_shape, dtype)
        if declared.packing is not None:
            raise UserError(
                f"{'/'.join(key[1])} is stored in few bits, and cannot be read one"
                " array at a time; leave out quantize_weights."
            )
        assembled = functools.partial(_assembled, key, abstract, of_array[key], read)
        node[key[1][-1]] = OnDisk(abstract, assembled)
    return variables


def _assembled(
    key: Key,
    abstract: jax.ShapeDtypeStruct,
    bindings: Sequence[Binding],
    read: Callable[[Binding], list[np.ndarray]],
) -> np.ndarray:
    """Returns an array in host memory: what one binding has, or all of its parts."""
    parts = (
        (slot.index, values)
        for binding in bindings
        for slot, values in zip(binding.slots, read(binding), strict=True)
        if (slot.collection, slot.path) == key
    )
    index, values = next(parts)
    if not index:
        return values.astype(abstract.dtype, copy=False)
    whole = np.empty(abstract.shape, abstract.dtype)
    whole[index] = values
    for index, values in parts:
        whole[index] = values
    return whole
