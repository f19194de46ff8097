"""Which devices exchange in a collective, in each of the ways that XLA writes it."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from maxfdl.report.hlo.text import Instruction, ints

_NAMED = re.compile(
    r"replica_groups=@?mesh\w*\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}"
)

Groups = tuple[tuple[int, ...], ...]


def groups_of(instruction: Instruction, num_devices: int) -> Groups:
    """Returns the devices of each group that exchanges; of a permute, each pair."""
    pairs = instruction.attribute(r"source_target_pairs=\{(\{.*?\})\}")
    listed = pairs or instruction.attribute(r"replica_groups=\{(\{.*?\})\}")
    if listed:
        found = re.findall(r"\{([\d,]+)\}", listed)
        return tuple(tuple(ints(group)) for group in found)
    counted = re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)",
        instruction.attributes,
    )
    if counted:
        return _rows(_iota(counted.group(3)).reshape(-1, int(counted.group(2))))
    named = _NAMED.search(instruction.attributes)
    if not named:
        return (tuple(range(num_devices)),)
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
    ids = _iota(named.group(2) or f"[{num_devices}]")
    return _along(ids.reshape([*sizes.values()]), [*sizes], named.group(3))


def axes_of(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the axes along which devices of a group differ.

    Args:
      groups: Devices by their places in the mesh, the last axis running fastest.
      mesh: Size of each axis.
    """
    sizes = [*mesh.values()]
    along: set[int] = set()
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), sizes))
        along |= {*np.flatnonzero(np.any(places != places[:, :1], axis=1)).tolist()}
    return tuple(name for dim, name in enumerate(mesh) if dim in along)


def crosses(groups: Groups, part_of: Sequence[int]) -> bool:
    """Returns whether a group has devices in several parts, such as slices.

    Args:
      groups: Devices by their places.
      part_of: The part of each place.
    """
    return any(len({part_of[device] for device in group}) > 1 for group in groups)


def _rows(array: np.ndarray) -> Groups:
    return tuple(map(tuple, array.tolist()))


def _iota(text: str) -> np.ndarray:
    """Returns the numbers that `[2,4]T(1,0)` stands for: iota, reshaped, transposed."""
    sizes, _, order = text.partition("T")
    ids = np.arange(math.prod(ints(sizes))).reshape(ints(sizes))
    return ids.transpose(ints(order)) if order else ids


def _along(ids: np.ndarray, names: list[str], axes: str) -> Groups:
    """Returns the groups along axes such as `'data', 'fsdp':(1)2`: the part of an axis
    after 1 of its devices, of size 2."""
    kept: list[int] = []
    sizes: list[int] = []
    parts = {n: (p, s) for n, p, s in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes)}
    for name, size in zip(names, ids.shape, strict=True):
        before, part = parts.get(name, ("1", "1"))
        before, part = int(before or 1), int(part or size)
        kept.append(len(sizes) + 1)
        sizes += [before, part, size // before // part]
    moved = np.moveaxis(ids.reshape(sizes), kept, range(-len(kept), 0))
    return _rows(moved.reshape(-1, math.prod(sizes[dim] for dim in kept)))
