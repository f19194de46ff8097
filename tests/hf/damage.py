"""Damaged config.json files, drawn at random: to be refused, or read right."""

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

VALUES = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**12, 10**30),
    *(1.5, -0.5, 1e-3, 1e30, float("nan"), float("inf")),
    *("", "x", "1", [], [1], ["x"], [None], {}, {"a": 1}),
)


def damaged(config: Mapping[str, Any], rng: random.Random) -> Iterator[bytes]:
    """Yields files like that of `config` with one fault each, for ever."""
    text = json.dumps(config, indent=2).encode()
    while True:
        draw = rng.random()
        if draw < 0.8:
            yield json.dumps(_with_another_value(config, rng)).encode()
        elif draw < 0.9:
            yield text[: rng.randrange(len(text))]
        else:
            flipped = bytearray(text)
            flipped[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
            yield bytes(flipped)


def _with_another_value(config: Mapping[str, Any], rng: random.Random) -> Any:
    """Returns a copy in which one key, at any depth, is gone or has another value."""
    changed = json.loads(json.dumps(config))
    places = list(_places(changed))
    node, key = rng.choice(places)
    if rng.random() < 0.15:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return changed


def _places(node: dict) -> Iterator[tuple[dict, str]]:
    for key, value in node.items():
        yield node, key
        if isinstance(value, dict):
            yield from _places(value)
