"""The modules of a model, read from its graph: the same for both families."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from maxfdl.graph.annotations import alternatives
from maxfdl.graph.flatten import show
from maxfdl.graph.signatures import fields, hint


@dataclasses.dataclass(frozen=True)
class Module:
    """A node that makes a layer.

    Args:
      path: In the parameter tree, such as `decoder/stacks_0`; the model's is empty.
      name: Of the field that holds it, such as `stacks[0]`.
      class_name: What it makes.
      fields: What the graph sets on it besides its children, as text.
    """

    path: str
    name: str
    class_name: str
    fields: dict[str, str]


def modules_of(model: fdl.Partial, name: str = "model") -> Iterator[Module]:
    """Yields the modules of a model node, parents first, in declaration order.

    A layer that a list names twice is two modules, for it makes two.
    """
    yield from _walk(model, "", name)


def _walk(node: fdl.Partial, path: str, name: str) -> Iterator[Module]:
    values = {n: node.__arguments__[n] for n in fields(node) if n in node.__arguments__}
    plain = {n: v for n, v in values.items() if not _children(n, v)}
    yield Module(
        path=path,
        name=name,
        class_name=fdl.get_callable(node).__qualname__,
        fields={
            n: _brief(v) for n, v in plain.items() if not _is_plain_op(v, hint(node, n))
        },
    )
    for field, value in values.items():
        for child_name, child in _children(field, value):
            child_path = re.sub(r"\[(\d+)\]", r"_\1", child_name)
            yield from _walk(child, f"{path}/{child_path}".lstrip("/"), child_name)


def _children(field: str, value: Any) -> list[tuple[str, fdl.Partial]]:
    """Returns the modules in a field: factories, alone or in a list."""
    if isinstance(value, fdl.Partial):
        return [(field, value)]
    if not isinstance(value, (list, tuple)):
        return []
    items = enumerate(value)
    return [(f"{field}[{i}]", v) for i, v in items if isinstance(v, fdl.Partial)]


def _is_plain_op(value: Any, annotation: Any) -> bool:
    """Says whether a leaf op is what a reader expects: the class that the field names,
    or the plain one of an abstract class that it names, as it comes."""
    if not isinstance(value, fdl.Config) or value.__arguments__:
        return False
    made = fdl.get_callable(value)
    return made in alternatives(annotation) or getattr(made, "is_plain", False)


def _brief(value: Any) -> str:
    """Returns a leaf or a leaf op in a few letters: `Rope(theta=10000.0)`."""
    if not isinstance(value, fdl.Buildable):
        return value if isinstance(value, str) else show(value)
    name = fdl.get_callable(value).__qualname__
    inner = ", ".join(f"{n}={_brief(v)}" for n, v in value.__arguments__.items())
    return f"{name}({inner})" if inner else name
