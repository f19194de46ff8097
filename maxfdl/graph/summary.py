"""What differs between two graphs, in one line for a log."""

from typing import Any

import fiddle as fdl

from maxfdl.graph import paths
from maxfdl.graph.collapse import collapse
from maxfdl.graph.diff import Table, in_order
from maxfdl.graph.flatten import Entry, Node, Value, flatten


def summary(a: fdl.Buildable, b: fdl.Buildable) -> str:
    """Returns the differences as `trainer.log_every 10 -> 50, mesh.data 1 -> 8`.

    A field that is not set counts as its default, so this is empty for two graphs that
    say the same, one of them in more words. See `diff` for every detail.
    """
    old, new = Table(flatten(a)), Table(flatten(b))
    changes: dict[str, list[str]] = {}
    for path in in_order(old.entries, new.entries):
        if text := _change(old.find(path), new.find(path)):
            changes.setdefault(text, []).append(path)
    return ", ".join(
        f"{pattern} {text}"
        for text, where in changes.items()
        for pattern in collapse(map(paths.label, where))
    )


def _change(x: Entry | None, y: Entry | None) -> str:
    """Returns what happened at a path, after its name; nothing if nothing did.

    What is gone, or new with the node that holds it, goes without saying.
    """
    if x is None:
        return f"= {y}" if isinstance(y, Value) and y.is_set else ""
    if y is None or _same(x, y):
        return ""
    return f"{_brief(x)} -> {_brief(y)}"


def _same(x: Entry, y: Entry) -> bool:
    if isinstance(x, Value) and isinstance(y, Value):
        return type(x.value) is type(y.value) and str(x) == str(y)
    return x == y


def _brief(entry: Any) -> str:
    return entry.name.split(".")[-1] if isinstance(entry, Node) else str(entry)
