"""Variables of a model, assembled on its devices one part at a time."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from maxfdl.errors import UserError
from maxfdl.layers.parameter import SUFFIXES
from maxfdl.model import Model
from maxfdl.ops.codec import Parts
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.table import Leaves, Slot

Key = tuple[str, tuple[str, ...]]
"""Collection and path of an array."""


class Arrays:
    """Variables in progress: an array is allocated when its first part arrives.

    Args:
      leaves: Declarations of all arrays, as they are stored.
      model: Its `param_dtype` is the type of those that declare none.
      sharding: Mesh and rules; None puts all on one device.

    Raises:
      UserError: If the mesh does not cut an array evenly.
    """

    def __init__(self, leaves: Leaves, model: Model, sharding: Sharding | None):
        self._leaves = leaves
        self._sharding = sharding
        self._param_dtype = jnp.dtype(model.network.param_dtype)
        self._arrays: dict[Key, jax.Array] = {}
        for (_, path), declared in leaves.items():
            if sharding is not None:
                shape, axes = declared.full_shape, declared.full_axes
                sharding.check("/".join(path), shape, axes)

    def dtype(self, slot: Slot) -> np.dtype:
        """Returns the type of the values at a slot, before a kernel is packed."""
        return jnp.dtype(slot.declared.dtype or self._param_dtype)

    def _dtype(self, key: Key) -> np.dtype:
        return jnp.dtype(self._leaves[key].dtype or self._param_dtype)

    def packs(self, slot: Slot) -> bool:
        """Says whether the values at a slot are those of a packed kernel."""
        return self._leaves[slot.collection, slot.path].packing is not None

    def fill(
        self, slot: Slot, values: np.ndarray, rounded: Rounded | None = None
    ) -> None:
        """Stores the values at a slot; those of a packed kernel are packed here.

        Args:
          slot: Where.
          values: The values.
          rounded: The same, if they are rounded: where the kernel is stored in such
            numbers, by such scales, these are kept.

        Raises:
          UserError: If values that are to be packed are not finite.
        """
        packing = self._leaves[slot.collection, slot.path].packing
        if packing is None:
            self._put((slot.collection, slot.path), slot.index, values)
            return
        if not np.all(np.isfinite(values)):
            raise UserError(
                f"{'/'.join(slot.path)} holds numbers that are not finite, which cannot"
                f" be stored as {packing.codec.numbers}; leave it out by"
                " quantize_weights(skip=...)."
            )
        kept = rounded and packing.exactly(rounded.numbers, rounded.scales)
        self._fill_packed(slot, kept or packing.encode(values))

    def _fill_packed(self, slot: Slot, parts: Parts) -> None:
        *above, name = slot.path
        for part, values in parts.items():
            path = (*above, f"{name}{SUFFIXES[part]}")
            self._put((slot.collection, path), slot.index, values)

    def _put(self, key: Key, index: tuple[int, ...], values: np.ndarray) -> None:
        if key not in self._arrays:
            self._arrays[key] = self._empty(key)
        whole = self._arrays.pop(key)
        place = self._place(key, len(index))
        part = jax.make_array_from_callback(
            values.shape, place, lambda where: values[where]
        )
        self._arrays[key] = _put(whole.sharding)(whole, part, index)
        # One part at a time: else parts pile up in the queue of the device.
        self._arrays[key].block_until_ready()

    def abstract(self) -> list[jax.ShapeDtypeStruct]:
        """Returns the shape, type and place of each array."""
        return [
            jax.ShapeDtypeStruct(
                leaf.full_shape, self._dtype(key), sharding=self._place(key)
            )
            for key, leaf in self._leaves.items()
        ]

    def nested(self) -> dict[str, Any]:
        """Returns the variables; state that nothing filled is as it starts."""
        tree: dict[str, Any] = {"params": {}, "state": {}}
        for key, declared in self._leaves.items():
            collection, path = key
            node = tree[collection]
            for name in path[:-1]:
                node = node.setdefault(name, {})
            if key not in self._arrays and isinstance(declared, StateDeclaration):
                first = jax.jit(declared.first, out_shardings=self._place(key))
                self._arrays[key] = first()
            node[path[-1]] = self._arrays[key]
        return tree

    def _empty(self, key: Key) -> jax.Array:
        shape = self._leaves[key].full_shape
        return _zeros(shape, self._dtype(key), self._place(key))

    def _place(self, key: Key, skip: int = 0) -> jax.sharding.Sharding:
        """Returns where an array lies, or a part of it without its first dims."""
        if self._sharding is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        # A part is cut as the whole is: the rules might cut it otherwise.
        spec = self._sharding.spec(self._leaves[key].full_axes)
        return NamedSharding(self._sharding.mesh, PartitionSpec(*spec[skip:]))


def _zeros(shape, dtype, place) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=place)()


@functools.cache
def _put(place: jax.sharding.Sharding):
    """Returns the function that writes a part into an array, in place."""

    def put(whole, part, index):
        lead = len(index)
        part = part.astype(whole.dtype).reshape((1,) * lead + part.shape)
        return lax.dynamic_update_slice(
            whole, part, (*index, *[0] * (part.ndim - lead))
        )

    return jax.jit(put, donate_argnums=0, out_shardings=place)
