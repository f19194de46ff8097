"""Entries of a PartitionSpec: which mesh axes cut each dim of an array."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import PartitionSpec

Cuts = tuple[tuple[int, tuple[str, ...]], ...]
"""Dims of an array that are cut, and by which mesh axes, the outermost first."""


def names_of(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes in an entry of a PartitionSpec."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def only(spec: PartitionSpec, axes: Sequence[str]) -> PartitionSpec:
    """Returns a spec without all mesh axes but these."""

    def kept(entry: Any) -> Any:
        names = tuple(name for name in names_of(entry) if name in axes)
        return names[0] if len(names) == 1 else names or None

    return PartitionSpec(*map(kept, spec))
