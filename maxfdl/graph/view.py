"""What a `check_config` or `check_in` rule sees of a node."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import fiddle as fdl

from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import parameters


class NodeView:
    """Field values of a node by attribute: what is set, else the default, else None.

    Children are views too, also inside lists, tuples and dicts, so that a rule reads
    `node.attention.num_heads` without knowing Fiddle. `made` is the class or function
    that the node calls.
    """

    def __init__(self, node: fdl.Buildable):
        self.__dict__["_node"] = node

    def __getattr__(self, name: str) -> Any:
        node = self.__dict__["_node"]
        if name in node.__arguments__:
            return _view(node.__arguments__[name])
        if name in parameters(node):
            return _default(node, name)
        raise AttributeError(f"{node.__fn_or_cls__.__qualname__} has no field {name!r}")

    @property
    def made(self) -> Any:
        return fdl.get_callable(self._node)

    def below(self) -> Iterator["NodeView"]:
        """Yields this node and all below it, each once."""
        for _, node in iterate(self._node):
            yield NodeView(node)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, NodeView) and self._node == other._node

    def __hash__(self) -> int:
        return id(self.__dict__["_node"])


def _view(value: Any) -> Any:
    if isinstance(value, fdl.Buildable):
        return NodeView(value)
    if isinstance(value, dict):
        return {key: _view(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_view, value))
    return value


def _default(node: fdl.Buildable, name: str) -> Any:
    fn = fdl.get_callable(node)
    for field in dataclasses.fields(fn) if dataclasses.is_dataclass(fn) else ():
        if field.name == name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    default = parameters(node)[name].default
    return None if default is inspect.Parameter.empty else default
