"""Reads a checkpoint of MaxText into a model's variables, one array at a time."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maxfdl.errors import UserError
from maxfdl.model import Model
from maxfdl.ops.state import Declaration
from maxfdl.paths import AnyPath, as_path
from maxfdl.sharding.room import check_room
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.arrays import Arrays
from maxfdl.tensors.finite import Inspection
from maxfdl.tensors.layouts import Config
from maxfdl.tensors.matching import listed, their_shapes
from maxfdl.tensors.maxtext.binding import bind
from maxfdl.tensors.maxtext.folder import MaxTextFolder, is_maxtext
from maxfdl.tensors.maxtext.form import conversion
from maxfdl.tensors.maxtext.items import Key
from maxfdl.tensors.maxtext.paxml import PaxmlFolder, is_paxml
from maxfdl.tensors.on_disk import lazily
from maxfdl.tensors.source import tell
from maxfdl.tensors.table import Binding, Leaves, leaves_of, stored_leaves_of

Folder = MaxTextFolder | PaxmlFolder
Variables = dict[str, Any]
Moments = dict[str, dict[str, Any]]
"""Trees like the parameters by the name of a moment."""


def is_checkpoint(path: AnyPath) -> bool:
    """Says whether a folder is a checkpoint of MaxText or Paxml."""
    return is_maxtext(path) or is_paxml(path)


def folder_at(
    path: str | os.PathLike, options: Mapping[str, Any] | None = None
) -> Folder:
    """Returns the checkpoint of MaxText or Paxml in a folder.

    Args:
      path: The folder.
      options: MaxText's options, where no file beside the checkpoint has them.

    Raises:
      UserError: If there is none.
    """
    if is_paxml(as_path(path)):
        return PaxmlFolder(path)
    return MaxTextFolder(path, options)


class MaxTextSource:
    """The arrays of a checkpoint that are the variables of a model.

    Args:
      folder: The checkpoint.
      model: The network.

    Attributes:
      bindings: What each array is in the model.
      layout: How the checkpoint is laid out.
      config: That of the layouts of the bindings.

    Raises:
      UserError: If the arrays are not those of the model, listing all that differ.
    """

    def __init__(self, folder: Folder, model: Model):
        self.folder, options = folder, folder.options
        self.layout = folder.layout
        self.config: Config = conversion(model.factory, options)
        self.bindings = bind(leaves_of(model), folder.naming, options, self.layout)
        _check(folder, self.bindings, self.layout, self.config)

    def read(self, binding: Binding) -> list[np.ndarray]:
        """Returns our arrays of a binding."""
        theirs = [self.folder.items.read(self.key(binding))]
        return binding.to_ours(theirs, self.config)

    def read_moment(self, binding: Binding, key: Key, order: int) -> list[np.ndarray]:
        """Returns the moments of our arrays, which lie at `key`."""
        layout = binding.layout.of_moment(order)
        theirs = [self.folder.items.read(key)]
        return layout.to_ours(theirs, binding.declared, self.config)

    def key(self, binding: Binding) -> Key:
        return _key(binding, self.layout)


def read_maxtext(
    folder: Folder,
    model: Model,
    sharding: Sharding | None = None,
    *,
    allow_non_finite: bool = False,
) -> Variables:
    """Returns the variables of `model` with the weights of a checkpoint.

    Args:
      folder: The checkpoint.
      model: The network.
      sharding: Mesh and rules; None puts all on one device.
      allow_non_finite: Whether to read weights that are not finite.

    Raises:
      UserError: If the arrays are not those of the model, listing all that differ; if
        the mesh does not divide them; or if one is not finite.
    """
    arrays = Arrays(stored_leaves_of(model), model, sharding)
    source = MaxTextSource(folder, model)
    check_room(arrays.abstract(), f"the weights in {folder.path} need")
    inspection = Inspection(allow_non_finite)
    for binding in source.bindings:
        where = folder.items.where(source.key(binding))
        for slot, values in zip(binding.slots, source.read(binding), strict=True):
            inspection.look(where, np.ascontiguousarray(values), arrays.dtype(slot))
            arrays.fill(slot, values)
    tell(inspection.remarks)
    return arrays.nested()


def lazy_variables(source: MaxTextSource, model: Model) -> Variables:
    """Returns the variables of a model, whose arrays are read when they are wanted."""
    leaves = stored_leaves_of(model)
    return lazily(leaves, model, source.bindings, source.read)


def lazy_moments(source: MaxTextSource, model: Model) -> Moments:
    """Returns the moments of a checkpoint, whose arrays are read when wanted."""
    found: Moments = {}
    for name, of_name in moments_in(source).items():
        bindings = [binding for binding, _ in of_name.pairs]
        keys = {binding.theirs: key for binding, key in of_name.pairs}

        def read(binding, keys=keys, order=of_name.order):
            return source.read_moment(binding, keys[binding.theirs], order)

        leaves = _of(bindings, model)
        found[name] = lazily(leaves, model, bindings, read)["params"]
    return found


class Moment(NamedTuple):
    """Where the arrays of one moment lie, by the bindings of their parameters."""

    order: int
    pairs: list[tuple[Binding, Key]]


def moments_in(source: MaxTextSource) -> dict[str, Moment]:
    """Returns the moments of a checkpoint, by their names in our optimizers.

    Raises:
      UserError: If it lacks some.
    """
    plan = source.folder.plan
    entries = source.folder.items.entries
    found, missing = {}, []
    for name, order in plan.orders.items():
        bindings = [b for b in source.bindings if plan.has(name, b)]
        pairs = [(b, plan.key(name, source.key(b))) for b in bindings]
        found[name] = Moment(order, pairs)
        keys = [key for _, key in pairs]
        missing += [k for k in keys if k not in entries or not entries[k].is_array]
    if missing:
        raise UserError(
            f"{source.folder.path} lacks the optimizer's"
            f" {listed([_shown(key) for key in missing])}; read the parameters alone."
        )
    return found


def read_moments(
    source: MaxTextSource, model: Model, sharding: Sharding | None
) -> Moments:
    """Returns the moments of a checkpoint, by their names in our optimizers.

    Those are float32, as optimizers compute; parameters that another rule moves have
    no leaf in the tree of a moment.

    Raises:
      UserError: If the checkpoint has no moments, or lacks some.
    """
    found: Moments = {}
    for name, (order, pairs) in moments_in(source).items():
        arrays = Arrays(_of([binding for binding, _ in pairs], model), model, sharding)
        for binding, key in pairs:
            values = source.read_moment(binding, key, order)
            for slot, x in zip(binding.slots, values, strict=True):
                arrays.fill(slot, x)
        found[name] = arrays.nested()["params"]
    return found


def read_count(source: MaxTextSource) -> int:
    """Returns the number of steps that were taken."""
    return int(source.folder.items.read(("step",)))


def _of(bindings: Sequence[Binding], model: Model) -> Leaves:
    """Returns the leaves of some parameters, as those of moments in float32."""
    own = {slot.path for b in bindings for slot in b.slots}
    return {
        key: _float32(declared)
        for key, declared in leaves_of(model).items()
        if key[0] == "params" and key[1] in own
    }


def _float32(declared: Any) -> Declaration:
    return dataclasses.replace(declared, dtype="float32")


def _key(binding: Binding, layout: Any) -> Key:
    (name,) = binding.theirs
    return layout.key(binding.slots[0].collection, name)


def _check(
    folder: Folder,
    bindings: list[Binding],
    layout: Any,
    config: Config,
) -> None:
    """Refuses a checkpoint whose arrays are not those that bindings need."""
    items, path = folder.items, folder.path
    arrays = set(items.arrays())
    shapes = {
        _key(binding, layout): shape
        for binding in bindings
        for shape in their_shapes([binding], config).values()
    }
    missing = [key for key in shapes if key not in arrays]
    found = {key: items.spec(key)[0] for key in shapes if key in arrays}
    misshapen = [
        f"{_shown(key)} {list(shape)} (must be {list(shapes[key])})"
        for key, shape in found.items()
        if shape != shapes[key]
    ]
    training = ("opt_state", "step")
    weights = {key for key in arrays if not str(key[0]).startswith(training)}
    extra = [key for key in weights - shapes.keys() if not _is_stream(key)]
    parts = {
        "missing": [_shown(key) for key in missing],
        "in no place of the model": sorted(map(_shown, extra)),
        "of another shape": misshapen,
    }
    problems = [f"  {what}: {listed(names)}" for what, names in parts.items() if names]
    if problems:
        raise UserError(
            f"{path} does not hold the arrays of its options:\n" + "\n".join(problems)
        )


def _is_stream(key: Key) -> bool:
    """Says whether an array belongs to a random stream of NNX."""
    return key[0] == "nnx_aux" and "rngs" in key


def _shown(key: Key) -> str:
    return "/".join(map(str, key))
