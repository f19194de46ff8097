"""Reads the weights of a folder into a model's variables.

Host memory holds one tensor at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maxfdl.model import Model
from maxfdl.sharding.room import check_room
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.arrays import Arrays
from maxfdl.tensors.finite import Inspection
from maxfdl.tensors.hugging_face.folder import Folder
from maxfdl.tensors.layouts import Config
from maxfdl.tensors.quantized.rounded import Rounded, converted
from maxfdl.tensors.source import Source, tell
from maxfdl.tensors.table import Binding, stored_leaves_of

Variables = dict[str, Any]
Moments = Callable[[str], np.ndarray]
"""The second moment of what a weight multiplies, by its name."""


def read_weights(
    folder: Folder,
    model: Model,
    sharding: Sharding | None = None,
    *,
    allow_non_finite: bool = False,
) -> Variables:
    """Returns the variables of `model` with the weights in `folder`.

    They have the types that the model declares, and the given sharding; None: on one
    device. A line on stderr reports tensors that are not used.

    Args:
      folder: The folder.
      model: The network.
      sharding: Mesh and rules.
      allow_non_finite: Whether to read weights that are not finite; they are reported
        on stderr.

    Raises:
      UserError: If the tensors are not those of the model, listing all that differ; if
        the mesh does not divide them; or if one is not finite.
    """
    arrays = Arrays(stored_leaves_of(model), model, sharding)
    source = Source(folder, model)
    check_room(arrays.abstract(), f"the weights in {folder.path} need")
    inspection = Inspection(allow_non_finite)
    for binding in source.bindings:
        theirs = [source.read(name) for name in binding.theirs]
        for name, values in zip(binding.theirs, theirs, strict=True):
            inspection.look(source.where(name), values, arrays.dtype(binding.slots[0]))
        ours = binding.to_ours(theirs, folder.config)
        kept: Sequence[Rounded | None] = [None] * len(ours)
        if all(map(arrays.packs, binding.slots)):
            kept = _rounded_ours(source, binding, folder.config) or kept
        for slot, values, rounded in zip(binding.slots, ours, kept, strict=True):
            arrays.fill(slot, values, rounded)
    tell(source.remarks)
    tell(inspection.remarks)
    return arrays.nested()


def _rounded_ours(
    source: Source, binding: Binding, config: Config
) -> list[Rounded] | None:
    """Returns the weights of a binding as the files have them in few bits, if all."""
    theirs = [source.rounded(name) for name in binding.theirs]
    found = [weight for weight in theirs if weight is not None]
    if len(found) < len(theirs):
        return None
    return converted(lambda xs: binding.to_ours(xs, config), found)
