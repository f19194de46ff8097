"""A graph as a table of paths: what text and diffs are made from."""

import dataclasses
import re
from typing import Any

import fiddle as fdl
from fiddle import daglish

from maxfdl.graph import paths
from maxfdl.graph.signatures import fields, parameters, symbol_name


@dataclasses.dataclass(frozen=True)
class Node:
    """A graph node: its kind (`Config` or `Partial`) and the name of its callable."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}[{self.name}]"


@dataclasses.dataclass(frozen=True)
class Shared:
    """The same node once more; `path` is where it came first."""

    path: str

    def __str__(self) -> str:
        return f"-> {paths.label(self.path)}"


@dataclasses.dataclass(frozen=True)
class Items:
    """A list, tuple or dict that has nodes in it; the items have their own paths."""

    kind: str

    def __str__(self) -> str:
        return f"a {self.kind} of nodes"


@dataclasses.dataclass(frozen=True)
class Value:
    """A leaf, or a container without nodes in it.

    Attributes:
      value: The leaf.
      is_set: False if this is the default of a field that is not set.
      same_as: The path where this very object (a list, say) came first, or None.
        Fiddle's `==` tells one list in two places from two equal lists.
    """

    value: Any
    is_set: bool = True
    same_as: str | None = None

    def __str__(self) -> str:
        return show(self.value)


Entry = Node | Shared | Items | Value


def show(value: Any) -> str:
    """Returns a stable text of a leaf: no addresses, full names of functions."""
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return symbol_name(value)
    if isinstance(value, (list, tuple)):
        items = ", ".join(map(show, value))
        comma = "," if type(value) is tuple and len(value) == 1 else ""
        return f"[{items}]" if type(value) is list else f"({items}{comma})"
    if type(value) is dict:
        return "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(show, value))) + "}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def flatten(cfg: Any) -> dict[str, Entry]:
    """Returns path -> entry, in declaration order, parents before their fields.

    Fields that are not set appear with their default (`is_set` False), so that a
    default and the same value written down can be told equal. Each node is entered
    once, so the work is linear in the number of nodes.
    """
    walk = _Walk()
    walk.visit(cfg, "")
    return walk.table


class _Walk:
    """One traversal: the table so far, and where each object was first seen."""

    def __init__(self):
        self.table: dict[str, Entry] = {}
        self.first: dict[int, str] = {}
        self.holds_node: dict[int, bool] = {}

    def visit(self, value: Any, path: str) -> None:
        if not self.has_nodes(value):
            self.table[path] = Value(value, same_as=self.seen(value, path))
        elif (before := self.seen(value, path)) is not None:
            self.table[path] = Shared(before)
        elif isinstance(value, fdl.Buildable):
            self.visit_node(value, path)
        else:
            self.table[path] = Items(type(value).__name__)
            for step, item in _items(value):
                self.visit(item, paths.join(path, step))

    def visit_node(self, node: fdl.Buildable, path: str) -> None:
        name = symbol_name(fdl.get_callable(node))
        self.table[path] = Node(type(node).__name__, name)
        for step, value, is_set in _arguments(node):
            if is_set:
                self.visit(value, paths.join(path, step))
            else:
                self.table[paths.join(path, step)] = Value(value, is_set=False)

    def seen(self, value: Any, path: str) -> str | None:
        """The path where `value` came first, if it did and if identity matters."""
        if daglish.is_internable(value) or callable(value):
            return None
        before = self.first.setdefault(id(value), path)
        return None if before == path else before

    def has_nodes(self, value: Any) -> bool:
        if isinstance(value, fdl.Buildable):
            return True
        if not isinstance(value, (list, tuple, dict)):
            return False
        if id(value) not in self.holds_node:
            self.holds_node[id(value)] = any(
                self.has_nodes(i) for _, i in _items(value)
            )
        return self.holds_node[id(value)]


def _arguments(node: fdl.Buildable) -> list[tuple[paths.Step, Any, bool]]:
    """`(step, value, is set)` of every field that has a value."""
    known = parameters(node)
    out = []
    for name in fields(node):
        if name in node.__arguments__:
            out.append((name, node.__arguments__[name], True))
        elif name in known and known[name].default is not known[name].empty:
            out.append((name, known[name].default, False))
    rest = [key for key in node.__arguments__ if key not in {n for n, _, _ in out}]
    for key in rest:
        step = key if isinstance(key, str) else (key,)
        out.append((step, node.__arguments__[key], True))
    return out


def _items(container: Any) -> list[tuple[paths.Step, Any]]:
    if isinstance(container, dict):
        return [((key,), item) for key, item in container.items()]
    if hasattr(container, "_fields"):  # a NamedTuple
        return list(zip(container._fields, container, strict=True))
    return [((index,), item) for index, item in enumerate(container)]
