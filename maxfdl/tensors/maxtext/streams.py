"""The random streams that NNX modules of MaxText keep: keys and counts.

They have no part in what a model computes, but MaxText's NNX restores none but a
checkpoint that has them.
"""

from typing import NamedTuple

import numpy as np

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
    options: Options, layout: CheckpointLayout, num_layers: int
) -> list[Stream]:
    """Returns streams that follow from MaxText's seed, where MaxText keeps some."""
    naming = naming_of(options)
    groups = naming.groups(num_layers, options, layout.scanned)
    places: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
    if layout.scanned:
        places.append((("decoder",), ()))
    for group in groups:
        if group.has_rngs:
            path = (*group.path.split("/"), *filter(None, naming.rngs.split("/")))
            places.append((path, (len(group.layers),) if group.is_stack else ()))
    draws = np.random.default_rng(options["init_weights_seed"])
    return [
        stream
        for path, lead in places
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


def _key(path: tuple[str, ...], name: str, part: str) -> Key:
    return ("nnx_aux", "model", *path, "rngs", name, part)
