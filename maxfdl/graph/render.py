"""The text of a graph: one line per set field, fit for golden files."""

import re
from typing import Any

import fiddle as fdl

from maxfdl.graph import paths
from maxfdl.graph.flatten import Node, Shared, Value, flatten, show


def as_text(cfg: fdl.Buildable) -> str:
    """Returns the graph as lines, in declaration order, without addresses.

    A node is `path: Partial[module.Class]`, a field `path = value`, and a node that
    came before `path -> first.path`. Fields that are not set do not show.
    """
    lines = []
    for path, entry in flatten(cfg).items():
        path = paths.label(path)
        if isinstance(entry, Node):
            lines.append(f"{path}: {entry}")
        elif isinstance(entry, Shared):
            lines.append(f"{path} {entry}")
        elif isinstance(entry, Value) and entry.is_set:
            lines.append(f"{path} = {entry}")
    return "\n".join(lines) + "\n"


def brief(value: Any) -> str:
    """Returns a short text of a node or a leaf, for messages."""
    if isinstance(value, fdl.Buildable):
        return f"{type(value).__name__}({fdl.get_callable(value).__qualname__})"
    text = re.sub(r"\s+", " ", show(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
