"""Weights of a folder into a model's variables, and back.

One tensor at a time is in host memory; what has been read lies on the devices.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from maxfdl.errors import UserError
from maxfdl.hf.folder import Folder
from maxfdl.hf.layouts import Config, Layout
from maxfdl.hf.names import table_of
from maxfdl.hf.table import (
    Binding,
    Leaves,
    NameTable,
    Slot,
    bind,
    canonical_names,
    is_ignored,
    leaves_of,
)
from maxfdl.hf.tensors import SHARD_BYTES, TensorReader, TensorWriter, is_supported
from maxfdl.layers.parameter import Parameter
from maxfdl.model import Model
from maxfdl.sharding.sharding import Sharding

Variables = dict[str, Any]


def read_weights(
    folder: Folder, model: Model, sharding: Sharding | None = None
) -> Variables:
    """Returns the variables of `model` with the weights in `folder`.

    They are of the model's `param_dtype`, and lie as `sharding` says; None: on one
    device.

    Raises:
      UserError: If the tensors are not those of the model, with all that differ.
    """
    table, config = table_of(folder.config["model_type"]), folder.config
    leaves, tensors = leaves_of(model), folder.tensors()
    bindings = bind(table, leaves)
    spelled = _checked(bindings, tensors, table, config, folder.path)
    arrays = _Arrays(leaves, model, sharding)
    for binding in bindings:
        theirs = [tensors.read(spelled[name]) for name in binding.theirs]
        ours = binding.to_ours(theirs, config)
        for slot, values in zip(binding.slots, ours, strict=True):
            arrays.fill(slot, values)
    return arrays.nested()


def write_weights(
    folder: pathlib.Path,
    model: Model,
    variables: Mapping[str, Any],
    config: Config,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes variables under Hugging Face's names, in the types that they have.

    Of several processes the first writes, and all must call.
    """
    bindings = bind(table_of(config["model_type"]), leaves_of(model))
    dtypes = {
        name: np.dtype(_leaf(variables, binding.slots[0]).dtype)
        for binding in bindings
        for name in binding.theirs
    }
    specs = {
        name: (shape, dtypes[name])
        for name, shape in _their_shapes(bindings, config).items()
    }
    writes = jax.process_index() == 0
    writer = TensorWriter(folder, specs, shard_bytes)
    with writer if writes else contextlib.nullcontext():
        for name, values in their_tensors(model, variables, config):
            if writes:
                writer.write(name, values)


def their_tensors(
    model: Model, variables: Mapping[str, Any], config: Config
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each of Hugging Face's tensors, made of a tree like `variables`."""
    for binding in bind(table_of(config["model_type"]), leaves_of(model)):
        theirs = binding.to_theirs(_fetch(variables, binding), config)
        yield from zip(binding.theirs, theirs, strict=True)


class _Arrays:
    """Variables under way: each array is made when its first part comes."""

    def __init__(self, leaves: Leaves, model: Model, sharding: Sharding | None):
        self._leaves = leaves
        self._sharding = sharding
        self._dtypes = {
            "params": jnp.dtype(model.network.param_dtype),
            "state": jnp.dtype(jnp.float32),  # what routers and the like are kept in
        }
        self._arrays: dict[tuple[str, tuple[str, ...]], jax.Array] = {}

    def fill(self, slot: Slot, values: np.ndarray) -> None:
        key = slot.collection, slot.path
        if key not in self._arrays:
            self._arrays[key] = self._empty(key)
        whole = self._arrays.pop(key)
        place = self._place(slot.declared, slot.declared.axes, slot.collection)
        part = jax.make_array_from_callback(
            values.shape, place, lambda index: values[index]
        )
        self._arrays[key] = _put(whole.sharding)(whole, part, slot.index)
        # One part at a time: else parts pile up in the queue of the device.
        self._arrays[key].block_until_ready()

    def nested(self) -> Variables:
        tree: Variables = {"params": {}, "state": {}}
        for collection, path in self._leaves:
            node = tree[collection]
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = self._arrays[collection, path]
        return tree

    def _empty(self, key: tuple[str, tuple[str, ...]]) -> jax.Array:
        parameter = self._leaves[key]
        place = self._place(parameter, parameter.full_axes, key[0])
        dtype = self._dtypes[key[0]]
        return _zeros(parameter.full_shape, dtype, place)

    def _place(self, parameter: Parameter, axes: tuple[str, ...], collection: str):
        if self._sharding is None:
            return SingleDeviceSharding(jax.local_devices()[0])
        return self._sharding.named(axes if collection == "params" else ())


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


def _fetch(variables: Mapping[str, Any], binding: Binding) -> list[np.ndarray]:
    """Returns the values at the slots of a binding, on the host."""
    fetched = []
    for slot in binding.slots:
        leaf = _leaf(variables, slot)
        fetched.append(np.asarray(_take(_everywhere(leaf))(leaf, slot.index)))
    return fetched


@functools.cache
def _take(place: jax.sharding.Sharding | None):
    def take(leaf, index):
        for each in index:
            leaf = lax.dynamic_index_in_dim(leaf, each, keepdims=False)
        return leaf

    return jax.jit(take, out_shardings=place)


def _everywhere(leaf: jax.Array) -> jax.sharding.Sharding | None:
    """Where each process has the whole of a part of `leaf`."""
    if isinstance(leaf.sharding, NamedSharding):
        return NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return None


def _leaf(variables: Mapping[str, Any], slot: Slot) -> jax.Array:
    node: Any = variables[slot.collection]
    for name in slot.path:
        node = node[name]
    return node


def _their_shapes(
    bindings: list[Binding], config: Config
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of their tensors, by running the layouts abstractly."""

    # Once for all layers and experts that are alike.
    @functools.cache
    def shapes(layout: Layout, declared: tuple[Parameter, ...]):
        ours = [jax.ShapeDtypeStruct(p.shape, jnp.float32) for p in declared]
        theirs = jax.eval_shape(lambda xs: layout.to_theirs(xs, declared, config), ours)
        return [tuple(x.shape) for x in theirs]

    return {
        name: shape
        for binding in bindings
        for name, shape in zip(
            binding.theirs, shapes(binding.layout, binding.declared), strict=True
        )
    }


def _checked(
    bindings: list[Binding],
    tensors: TensorReader,
    table: NameTable,
    config: Config,
    path: pathlib.Path,
) -> dict[str, str]:
    """Returns the name in the files of each tensor that is needed.

    Raises:
      UserError: If any is missing, too many, or of another shape or type: all at once.
    """
    wanted = _their_shapes(bindings, config)
    spelled = canonical_names(tensors.names(), table, set(wanted))
    missing = [name for name in wanted if name not in spelled]
    extra = [
        name
        for name in sorted(set(tensors.names()) - set(spelled.values()))
        if not is_ignored(name, table, config)
    ]
    misshapen = [
        f"{name} {list(tensors.shape(real))} (must be {list(wanted[name])})"
        for name, real in spelled.items()
        if tensors.shape(real) != wanted[name]
    ]
    unreadable = [
        f"{name} {tensors.code(real)}"
        for name, real in spelled.items()
        if not is_supported(tensors.code(real))
    ]
    parts = (
        ("missing", missing),
        ("in no place of the model", extra),
        ("of another shape", misshapen),
        ("of a type that is not read", unreadable),
    )
    problems = [f"  {what}: {', '.join(names)}" for what, names in parts if names]
    if problems:
        raise UserError(
            f"{path} does not hold the tensors of its config.json:\n"
            + "\n".join(problems)
        )
    return spelled
