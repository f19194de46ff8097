"""The random streams that NNX modules of MaxText keep: keys and counts.

They have no part in what a model computes, but MaxText's NNX restores none but a
checkpoint that has them.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from maxfdl.tensors.maxtext.groups import Group
from maxfdl.tensors.maxtext.items import Items, Key
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.names import naming_of
from maxfdl.tensors.maxtext.options import Options

_NAMES = ("aqt", "dropout", "params")
_WORDS = 4
_KIND = "unsafe_rbg"  # of MaxText's keys


class Stream(NamedTuple):
    """A key or a count of a stream; `random` names the kind of a key."""

    key: Key
    values: np.ndarray
    random: str | None


def streams_in(items: Items) -> list[Stream]:
    """Returns the streams of a checkpoint."""
    keys = [key for key in items.arrays() if key[0] == "nnx_aux" and "rngs" in key]
    return [
        Stream(key, items.read(key), _KIND if key[-1] == "key" else None)
        for key in keys
    ]


def fresh_streams(
    options: Options, layout: CheckpointLayout, num_layers: int, paths: Collection[str]
) -> list[Stream]:
    """Returns streams that follow from MaxText's seed, where MaxText keeps some.

    Args:
      options: MaxText's.
      layout: How the checkpoint is laid out.
      num_layers: Of the decoder.
      paths: Paths of all parameters, which tell the parts that a layer has.
    """
    draws = np.random.default_rng(options["init_weights_seed"])
    return [
        stream
        for path, lead in _places(options, layout.scanned, num_layers, paths)
        for name in _NAMES
        for stream in (
            Stream(_key(path, name, "count"), np.zeros(lead, np.uint32), None),
            Stream(
                _key(path, name, "key"),
                draws.integers(2**32, size=(*lead, _WORDS), dtype=np.uint32),
                _KIND,
            ),
        )
    ]


def _places(
    options: Options, scanned: bool, num_layers: int, paths: Collection[str]
) -> list[tuple[str, tuple[int, ...]]]:
    """Returns what keeps streams, and the leading dims of these.

    Modules that share streams keep them once, where the first of them is in the order
    of names. Layers of a stack have their own, all other layers those of the decoder.
    """
    naming = naming_of(options)
    groups = naming.groups(num_layers, options, scanned)

    def inside(group: Group) -> str:
        parts = (f"{group.path}/{part}" if part else group.path for part in naming.rngs)
        return next(
            part for part in parts if any(path.startswith(f"{part}/") for path in paths)
        )

    if not scanned:
        return [(inside(groups[0]), ())]
    stacks = [group for group in groups if group.is_stack and group.has_rngs]
    places = [(inside(group), (len(group.layers),)) for group in stacks]
    if naming.block_rngs is not None:
        places.append((naming.block_rngs, places[0][1]))
    alone = [group for group in groups if not group.is_stack]
    return [*places, (inside(alone[0]) if alone else naming.decoder_rngs, ())]


def _key(path: str, name: str, part: str) -> Key:
    return ("nnx_aux", "model", *path.split("/"), "rngs", name, part)
