"""Which arrays of a checkpoint of MaxText are which of a model's."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

from maxfdl.errors import UserError
from maxfdl.ops.state import Declaration
from maxfdl.tensors.maxtext.groups import Group
from maxfdl.tensors.maxtext.layouts import Stacked
from maxfdl.tensors.maxtext.names import Naming, rows_for
from maxfdl.tensors.maxtext.options import Options
from maxfdl.tensors.table import Binding, Leaves, Row, Slot, layers_of, unbound

Place = tuple[tuple[str, ...], int]
"""Path of a stacked layer, and the repeat."""


def bind(
    leaves: Leaves, naming: Naming, options: Options, layout: Any
) -> list[Binding]:
    """Returns the bindings of a model, in which `theirs` is a path of MaxText's.

    Args:
      leaves: Declarations of the arrays of the model.
      naming: What they are called.
      options: MaxText's.
      layout: A `CheckpointLayout`, or another that has the same methods.

    Raises:
      UserError: If a parameter of the model is in no row.
    """
    places: dict[int, Place] = {
        number: (stack, repeat) for stack, repeat, number in layers_of(leaves)
    }
    groups = naming.groups(len(places), options, layout.scanned)
    rows = rows_for(naming, options)
    bindings = [
        binding
        for row in rows
        for binding in (
            _of_group(row, groups, places, leaves, layout)
            if "{layer}" in str(row.theirs)
            else _outside(row, leaves)
        )
    ]
    if missing := unbound(leaves, bindings):
        raise UserError(
            f"MaxText's {options['decoder_block']} has no array for"
            f" {', '.join(missing)}; save the run as a checkpoint instead."
        )
    return bindings


def _outside(row: Row, leaves: Leaves) -> Iterator[Binding]:
    keys = [("params", tuple(path.split("/"))) for path in _ours(row)]
    if all(key in leaves for key in keys):
        slots = tuple(Slot(*key, (), leaves[key]) for key in keys)
        yield Binding((cast(str, row.theirs),), slots, row.layout)


def _of_group(
    row: Row,
    groups: Sequence[Group],
    places: dict[int, Place],
    leaves: Leaves,
    layout: Any,
) -> Iterator[Binding]:
    """Yields a binding for each group of layers that have the paths of a row."""
    collection = "state" if row.state else "params"
    for group in groups:
        own = [places[number] for number in group.layers]
        keys = [
            [(collection, (*stack, *path.split("/"))) for path in _ours(row)]
            for stack, _ in own
        ]
        beside = row.beside.split("/") if row.beside else ()
        needed = [("params", (*stack, *beside)) for stack, _ in own if beside]
        if not all(key in leaves for key in (*itertools.chain(*keys), *needed)):
            continue
        name = cast(str, row.theirs).format(layer=group.path, kind=group.kind)
        slots, inner = _slots(group, keys, own, leaves), row.layout
        if group.is_stack:
            is_whole = not slots[0].index
            apart = None if is_whole else len(group.layers)
            inner = Stacked(inner, layout.axis_of(collection), apart)
        yield Binding((name,), tuple(slots), inner)


def _slots(group: Group, keys: Any, own: Sequence[Place], leaves: Leaves) -> list[Slot]:
    """Returns the slots of all layers of a group: whole stacks if it has just these."""
    first, repeats = leaves[keys[0][0]], [repeat for _, repeat in own]
    is_one_stack = group.is_stack and len({stack for stack, _ in own}) == 1
    if is_one_stack and repeats == [*range(first.repeats or 0)]:
        return [Slot(key[0], key[1], (), _whole(leaves[key])) for key in keys[0]]
    return [
        Slot(key[0], key[1], (repeat,), _one(leaves[key]))
        for each, (_, repeat) in zip(keys, own, strict=True)
        for key in each
    ]


def _whole(declared: Declaration) -> Declaration:
    """Returns the declaration of a stack as that of one array."""
    return dataclasses.replace(
        cast(Any, declared),
        shape=declared.full_shape,
        axes=declared.full_axes,
        repeats=None,
        **({"batched": declared.batched + 1} if declared.contracted else {}),
    )


def _one(declared: Declaration) -> Declaration:
    return dataclasses.replace(cast(Any, declared), repeats=None)


def _ours(row: Row) -> tuple[str, ...]:
    return (row.ours,) if isinstance(row.ours, str) else row.ours
