"""Writes a model's variables as a checkpoint that MaxText restores.

Host memory holds one array at a time, or one stack.
"""

import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maxfdl.model import Model
from maxfdl.tensors.finite import Inspection
from maxfdl.tensors.layouts import Config, Layout
from maxfdl.tensors.maxtext.binding import bind
from maxfdl.tensors.maxtext.folder import ITEMS
from maxfdl.tensors.maxtext.form import conversion
from maxfdl.tensors.maxtext.items import ItemsWriter, Key
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.layouts import Plus, Stacked, Times
from maxfdl.tensors.maxtext.moments import OptimizerLayout, moments_of
from maxfdl.tensors.maxtext.names import Naming, naming_of
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.maxtext.paxml import (
    NAMING,
    PaxmlLayout,
    PaxmlWriter,
    moments_for,
)
from maxfdl.tensors.maxtext.streams import Stream
from maxfdl.tensors.on_disk import Held
from maxfdl.tensors.source import tell
from maxfdl.tensors.table import Binding, leaves_of
from maxfdl.tensors.writing import fetch

_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler"
_METADATA, _COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"


class MaxTextTarget:
    """The arrays of a checkpoint that the variables of a model become.

    Args:
      model: The network.
      options: What MaxText is to run with.
      layout: How the checkpoint is laid out.
      naming: What arrays are called; None: as in MaxText.

    Raises:
      UserError: If MaxText has no place for a parameter.
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        layout: Any,
        naming: Naming | None = None,
    ):
        self.model, self.options, self.layout = model, options, layout
        self.config: Config = conversion(model.factory, options)
        naming = naming or naming_of(options)
        self.bindings = bind(leaves_of(model), naming, options, layout)
        self._rounded: list[str] = []

    def key(self, binding: Binding) -> Key:
        (name,) = binding.theirs
        return self.layout.key(binding.slots[0].collection, name)

    def arrays(self, variables: Mapping[str, Any]) -> Iterator[tuple[Key, np.ndarray]]:
        """Yields MaxText's arrays of all parameters and state."""
        held = Held(variables)
        for binding in held.in_order(self.bindings):
            ours = [fetch(self.model, held, slot) for slot in binding.slots]
            (theirs,) = binding.to_theirs(ours, self.config)
            if rounds(binding.layout, self.config):
                self._compare(binding, ours, theirs)
            yield self.key(binding), theirs
            del ours, theirs  # memory holds one stack

    def moments(
        self, plan: OptimizerLayout, moments: Mapping[str, Any]
    ) -> Iterator[tuple[Key, np.ndarray | None]]:
        """Yields MaxText's arrays of all moments; None where a parameter has none."""
        for name in plan.orders:
            held = Held({"params": moments[name]})
            for binding in held.in_order(self.bindings):
                key = plan.key(name, self.key(binding))
                if binding.slots[0].collection == "params":
                    has = plan.has(name, binding)
                    yield key, self._moment(binding, held, plan, name) if has else None
                elif self.layout.framework == "linen" and not plan.is_matrix(name):
                    # To Linen, what no gradient reaches is a parameter, too.
                    yield key, self._zeros(binding, plan.dtypes[name])

    def _moment(self, binding: Binding, held: Held, plan: OptimizerLayout, name: str):
        ours = [fetch(self.model, held, slot) for slot in binding.slots]
        layout = binding.layout.of_moment(plan.orders[name])
        (theirs,) = layout.to_theirs(ours, binding.declared, self.config)
        return theirs.astype(plan.dtypes[name], copy=False)

    def _zeros(self, binding: Binding, dtype: str) -> np.ndarray:
        ours = [np.zeros(slot.declared.shape, dtype) for slot in binding.slots]
        return binding.to_theirs(ours, self.config)[0]

    def _compare(self, binding: Binding, ours: list[np.ndarray], theirs: np.ndarray):
        again = binding.to_ours([theirs], self.config)
        pairs = zip(ours, again, strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            self._rounded.append(binding.theirs[0])

    @property
    def remarks(self) -> list[str]:
        """A line about arrays whose numbers were rounded, or none."""
        if not self._rounded:
            return []
        more = len(self._rounded) - 1
        others = f" and {more} more arrays" if more else ""
        return [
            f"{self._rounded[0]}{others} were rounded, for MaxText keeps in them what"
            " this network applies as it runs; reading them back differs in the last"
            " bit"
        ]


def rounds(layout: Layout, config: Config) -> bool:
    """Says whether a layout may round numbers: powers of 2 are exact."""
    if isinstance(layout, Stacked):
        return rounds(layout.inner, config)
    if isinstance(layout, Times):
        factor = config["factors"].get(layout.factor, 1.0)
        return math.frexp(factor)[0] != 0.5
    return isinstance(layout, Plus)


def write_maxtext(
    folder: pathlib.Path | None,
    target: MaxTextTarget,
    variables: Mapping[str, Any],
    moments: Mapping[str, Any] | None,
    step: int,
    streams: list[Stream],
    *,
    allow_non_finite: bool = False,
) -> None:
    """Writes a checkpoint: parameters, and what else its layout has.

    All processes must call; those that do not write pass no folder.

    Args:
      folder: Where to; the arrays go into `items/` in it.
      target: What they become.
      variables: The weights.
      moments: Trees like the parameters, by name; None: parameters alone.
      step: Steps that were taken.
      streams: Random streams of NNX.
      allow_non_finite: Whether to write weights that are not finite.

    Raises:
      UserError: If weights are not finite, unless `allow_non_finite`.
    """
    writer = None if folder is None else ItemsWriter(folder / ITEMS)
    inspection = Inspection(allow_non_finite)
    for key, theirs in target.arrays(variables):
        theirs = np.ascontiguousarray(theirs)
        inspection.look("/".join(map(str, key)), theirs, theirs.dtype)
        if writer is not None:
            writer.write(key, theirs)
        del theirs
    tell([*inspection.remarks, *target.remarks])
    if moments is not None:
        plan = moments_of(target.options, target.layout)
        for key, found in target.moments(plan, moments):
            if writer is not None:
                _write(writer, key, found)
            del found
        if writer is not None:
            _write_rest(writer, plan, step, streams)
    elif writer is not None and target.layout.framework == "linen":
        writer.leave_empty(("opt_state",), "Dict")
        writer.write(("step",), np.asarray(step, np.int64), kind="scalar")
    if folder is not None and writer is not None:
        writer.close()
        _commit(folder, target.layout, moments is not None)


def write_paxml(
    folder: pathlib.Path | None,
    model: Model,
    options: Options,
    variables: Mapping[str, Any],
    moments: Mapping[str, Any] | None,
    step: int,
    *,
    allow_non_finite: bool = False,
) -> None:
    """Writes a GPT-3 as a checkpoint of Paxml; arguments as of `write_maxtext`."""
    layout = PaxmlLayout(whole=moments is not None)
    target = MaxTextTarget(model, options, layout, NAMING)
    writer = None if folder is None else PaxmlWriter(folder)
    inspection = Inspection(allow_non_finite)
    for key, theirs in target.arrays(variables):
        theirs = np.ascontiguousarray(theirs)
        inspection.look(str(key[0]), theirs, theirs.dtype)
        if writer is not None:
            writer.write(key, theirs)
        del theirs
    tell([*inspection.remarks, *target.remarks])
    plan = moments_for(options)
    for key, found in target.moments(plan, moments) if moments is not None else ():
        if writer is not None and found is not None:
            writer.write(key, np.ascontiguousarray(found))
        del found
    if moments is not None and writer is not None:
        for key in (("step",), *plan.counts):
            writer.write(key, np.asarray(step, np.int32))


def _write(writer: ItemsWriter, key: Key, values: np.ndarray | None) -> None:
    if values is None:
        writer.leave_empty(key)
    else:
        writer.write(key, np.ascontiguousarray(values))


def _write_rest(
    writer: ItemsWriter, plan: OptimizerLayout, step: int, streams: list[Stream]
) -> None:
    for key in (("step",), *plan.counts):
        writer.write(key, np.asarray(step, np.int32))
    for key, values in plan.constants.items():
        writer.write(key, values)
    for key in plan.empty:
        writer.leave_empty(key)
    for stream in streams:
        writer.write(stream.key, stream.values, random=stream.random)


def _commit(folder: pathlib.Path, layout: CheckpointLayout, whole: bool) -> None:
    """Writes what tells Orbax that the checkpoint is complete."""
    now = time.time_ns()
    metadata = {
        "item_handlers": {ITEMS: f"{_HANDLER}.PyTreeCheckpointHandler"},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {"scan_layers": layout.scanned} if whole else {},
    }
    (folder / _METADATA).write_text(json.dumps(metadata), "utf-8")
    for place in (folder, folder / ITEMS):
        (place / _COMMITTED).write_text("Checkpoint commit was successful", "utf-8")
