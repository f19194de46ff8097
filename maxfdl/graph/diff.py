"""What differs between two graphs, in lines for a reader."""

from typing import Any

import fiddle as fdl
from fiddle import daglish, diffing

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import paths
from maxfdl.graph.collapse import collapse
from maxfdl.graph.flatten import Entry, Node, Shared, Value, flatten


def diff(a: fdl.Buildable, b: fdl.Buildable, only: str = "") -> list[str]:
    """Returns the differences; none if and only if `a == b`.

    First come the swaps of callables, grouped (`* old -> new  (3 nodes: ...)`), then
    what was added (`+ path = value`), removed (`- ...`) and changed (`~ path: old ->
    new`). Nodes are aligned by path, in linear time; lines that say the same of
    sibling paths become one (`attention.{q,k}.dot`).

    Args:
      a: The old graph.
      b: The new graph.
      only: Look at this path, and below it.

    Raises:
      ConfigError: If neither graph has the path `only`.
    """
    old, new = Table(flatten(a)), Table(flatten(b))
    together = in_order(old.entries, new.entries)
    if only:
        _refuse_unknown(only, together)
        together = [path for path in together if paths.is_inside(path, only)]
    swaps: dict[tuple[str, str], list[tuple[str, str]]] = {}
    changes: dict[tuple[str, str], list[str]] = {}
    for path in together:
        x, y = old.find(path), new.find(path)
        if isinstance(x, Node) and isinstance(y, Node) and x != y:
            before, after, class_name = _what_differs(x, y)
            swaps.setdefault((before, after), []).append((path, class_name))
        elif change := _change(x, y):
            changes.setdefault(change, []).append(path)
    return [*map(_swap_line, swaps, swaps.values()), *_change_lines(changes)]


class Table:
    """A flattened graph that also answers for paths that go through a shared node."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries

    def find(self, path: str) -> Entry | None:
        if path in self.entries:
            return self.entries[path]
        end = max(path.rfind("."), path.rfind("["))
        while end > 0:
            above = self.entries.get(path[:end])
            if isinstance(above, Shared):
                return self.find(above.path + path[end:])
            end = max(path.rfind(".", 0, end), path.rfind("[", 0, end))
        return None


def in_order(old: dict[str, Entry], new: dict[str, Entry]) -> list[str]:
    """All paths; those of `new` alone follow the path that precedes them there."""
    out, waiting = [], iter(new)
    for path in old:
        if path in new:
            for other in waiting:
                if other == path:
                    break
                if other not in old:
                    out.append(other)
        out.append(path)
    seen = set(out)
    return out + [path for path in new if path not in seen]


def _refuse_unknown(only: str, known: list[str]) -> None:
    if not any(paths.is_inside(path, only) for path in known):
        raise ConfigError(f"no such path {only!r}.{did_you_mean(only, known)}")


def _what_differs(x: Node, y: Node) -> tuple[str, str, str]:
    """Old name, new name, class: without the tail of the names if that is equal."""
    if x.kind != y.kind:
        return str(x), str(y), ""
    old, new = x.name.split("."), y.name.split(".")
    if old[-1] != new[-1]:
        return x.name, y.name, ""
    class_name = old[-1]
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    if not (old and new):
        return x.name, y.name, ""
    return ".".join(old), ".".join(new), class_name


def _swap_line(names: tuple[str, str], nodes: list[tuple[str, str]]) -> str:
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    classes = sorted({class_name for _, class_name in nodes if class_name})
    what = classes or collapse(paths.label(path) for path, _ in nodes)
    return f"* {names[0]} -> {names[1]}  ({count}: {', '.join(what)})"


def _change(x: Entry | None, y: Entry | None) -> tuple[str, str] | None:
    """The sign, and the text after the path, of what happened; None if nothing."""
    if isinstance(x, Value) and isinstance(y, Value):
        return _value_change(x, y)
    if x == y or (_is_absent(x) and _is_absent(y)):
        return None
    if _is_absent(x):
        return "+", _assigned(y)
    if _is_absent(y):
        return "-", _assigned(x)
    return "~", f": {_side(x)} -> {_side(y)}"


def _is_absent(entry: Entry | None) -> bool:
    return entry is None or (isinstance(entry, Value) and not entry.is_set)


def _value_change(x: Value, y: Value) -> tuple[str, str] | None:
    if not _equal(x.value, y.value):
        if not (x.is_set or y.is_set):
            return None  # two classes with different defaults: the swap says it
        if not x.is_set:
            return "+", f" = {y}"
        return ("~", f": {x} -> {y}") if y.is_set else ("-", f" = {x}")
    if x.is_set and y.is_set and x.same_as != y.same_as:
        return "~", f": {_sharing(x)} -> {_sharing(y)}"
    return None


def _equal(x: Any, y: Any) -> bool:
    try:
        return bool(x == y)
    except (TypeError, ValueError):  # an array has no one truth
        return False


def _sharing(value: Value) -> str:
    return (
        f"{value} of its own" if value.same_as is None else f"same as {value.same_as}"
    )


def _assigned(entry: Entry | None) -> str:
    if isinstance(entry, Shared):
        return f" {entry}"
    return f" = {entry}" if isinstance(entry, Value) else f": {entry}"


def _side(entry: Entry | None) -> str:
    if isinstance(entry, Shared):
        return f"shared with {paths.label(entry.path)}"
    return str(entry)


def _change_lines(changes: dict[tuple[str, str], list[str]]) -> list[str]:
    return [
        f"{sign} {pattern}{text}"
        for (sign, text), where in changes.items()
        for pattern in collapse(map(paths.label, where))
    ]


def as_fiddle_diff(a: fdl.Buildable, b: fdl.Buildable) -> diffing.Diff:
    """Returns Fiddle's own diff, with nodes aligned by path.

    `diffing.build_diff` searches for an alignment in quadratic time: minutes for an
    unrolled model. `diffing.apply_diff(result, a)` makes `b`.
    """
    alignment = diffing.DiffAlignment(a, b)
    old = {path: value for value, path in daglish.iterate(a)}
    for value, path in daglish.iterate(b):
        if path in old and alignment.can_align(old[path], value):
            alignment.align(old[path], value)
    return diffing.build_diff_from_alignment(alignment)
