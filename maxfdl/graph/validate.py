"""Everything that is wrong with a graph, before anything is built."""

import os
from collections.abc import Iterator
from typing import Any

import fiddle as fdl
from flax import linen, nnx

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import paths
from maxfdl.graph.annotations import (
    accepts,
    alternatives,
    is_finite,
    item_hints,
    pretty,
    wants_callable,
    wants_node,
)
from maxfdl.graph.render import brief
from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import (
    fields,
    from_parent,
    hint,
    parameters,
    required,
    takes_any_field,
)
from maxfdl.graph.view import NodeView


def validate(cfg: fdl.Buildable) -> fdl.Buildable:
    """Returns `cfg` if it can be built.

    Checked are: types, fields that only a parent may pass, required fields, unknown
    and positional arguments, numbers that are not finite, `Config` where a factory
    belongs and the reverse, and two kinds of rules that classes may have:

    - `check_config(node)`: between the fields of the node, and of those below.
    - `check_in(node, root)`: what the node asks of the rest of the graph. It is asked
      where the class of the root has `holds_all`, so parts can be validated alone.

    Raises:
      ConfigError: Listing all problems at once, a line for each, with its path and
        the file and line that set the value. A single problem is one line.
    """
    if not isinstance(cfg, fdl.Buildable):
        raise ConfigError(
            f"A config must be a graph (fdl.Config), got {type(cfg).__name__}"
            f" {brief(cfg)}."
        )
    found = list(dict.fromkeys(_problems(list(iterate(cfg)))))
    if len(found) == 1:
        raise ConfigError(f"invalid config: {found[0]}")
    if found:
        raise ConfigError("\n  ".join(["invalid config:", *found]))
    return cfg


def _problems(nodes: list[tuple[str, fdl.Buildable]]) -> Iterator[str]:
    """All problems, node by node.

    The rules of a class may look at any node below, so they are asked only where the
    fields of all of those are sound.
    """
    faults = {
        id(node): [*_misplaced(path, node), *_wrong(path, node), *_unset(path, node)]
        for path, node in nodes
    }
    is_sound = not any(faults.values())
    for path, node in nodes:
        yield from faults[id(node)]
        if is_sound or not any(faults.get(id(below)) for _, below in iterate(node)):
            yield from _broken_rules(path, "check_config", node)
    _, root = nodes[0]
    if is_sound and getattr(fdl.get_callable(root), "holds_all", False):
        for path, node in nodes:
            yield from _broken_rules(path, "check_in", node, root)


def _broken_rules(path: str, name: str, *nodes: fdl.Buildable) -> Iterator[str]:
    """What the rules called `name` of the first node's class say of these nodes."""
    rules = getattr(fdl.get_callable(nodes[0]), name, lambda *views: ())
    for sentence in rules(*map(NodeView, nodes)):
        yield f"{paths.label(path)}: {sentence}"


def _misplaced(path: str, node: fdl.Buildable) -> Iterator[str]:
    """A node that is built at once, although its parent has arguments for it."""
    owned = [
        name
        for name, p in parameters(node).items()
        if p.default is p.empty and from_parent(node, name)
    ]
    if owned and not isinstance(node, fdl.Partial):
        yield (
            f"{paths.label(path)} is a Config of {fdl.get_callable(node).__qualname__},"
            f" whose {', '.join(owned)} the parent passes; use fdl.Partial"
            f"{_made_at(node)}"
        )


def _wrong(path: str, node: fdl.Buildable) -> Iterator[str]:
    """Fields whose value cannot stay: unknown, owned by the parent, of wrong type."""
    for name, value in node.__arguments__.items():
        at, source = paths.join(path, name if isinstance(name, str) else (name,)), ""
        source = _set_at(node, name)
        if not isinstance(name, str):
            yield f"{at} = {brief(value)} is positional; pass it by keyword{source}"
        elif name not in parameters(node) and not takes_any_field(node):
            near = did_you_mean(name, fields(node))
            yield f"{at} is no field of {fdl.get_callable(node).__qualname__}.{near}"
        elif from_parent(node, name):
            yield (
                f"{at} is passed by the parent and would be overridden; set the"
                f" owning field instead{source}"
            )
        else:
            for where, item, expected in _misfits(at, value, hint(node, name)):
                yield f"{where} = {brief(item)} {_complaint(item, expected)}{source}"


def _misfits(path: str, value: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """The smallest parts of `value` that do not fit, as (path, part, annotation)."""
    if _is_misused_module(value, expected):
        yield path, value, expected
    if accepts(value, expected):
        for each in alternatives(expected):
            for key, item, inner in item_hints(value, each):
                if _is_misused_module(item, inner):
                    yield paths.join(path, (key,)), item, inner
        return
    inside = [
        misfit
        for each in alternatives(expected)
        for key, item, inner in item_hints(value, each)
        for misfit in _misfits(paths.join(path, (key,)), item, inner)
    ]
    yield from inside or [(path, value, expected)]


def _is_misused_module(value: Any, expected: Any) -> bool:
    """A Flax layer is made by its parent, even where its instance is callable too."""
    if not isinstance(value, fdl.Config) or not accepts(value, expected):
        return False
    made = fdl.get_callable(value)
    is_module = isinstance(made, type) and issubclass(made, nnx.Module | linen.Module)
    return is_module and any(map(wants_callable, alternatives(expected)))


def _complaint(value: Any, expected: Any) -> str:
    if not is_finite(value):
        return "must be finite"
    factory = any(map(wants_callable, alternatives(expected)))
    if isinstance(value, fdl.Config) and factory:
        return f"is built at once, but {pretty(expected)} wants a factory: fdl.Partial"
    if isinstance(value, fdl.Partial) and not factory:
        return f"is a factory, but {pretty(expected)} wants an object: fdl.Config"
    if wants_node(expected) and not isinstance(value, fdl.Buildable):
        node = "fdl.Partial" if factory else "fdl.Config"
        return f"is not {pretty(expected)}; a node belongs there: {node}(...)"
    return f"is not {pretty(expected)}"


def _unset(path: str, node: fdl.Buildable) -> Iterator[str]:
    for name in required(node):
        if name not in node.__arguments__:
            yield f"{paths.join(path, name)} is required and not set{_made_at(node)}"


def _set_at(node: fdl.Buildable, name: str | int) -> str:
    history = node.__argument_history__.get(name)
    return f"  (set at {_location(history[-1].location)})" if history else ""


def _made_at(node: fdl.Buildable) -> str:
    history = node.__argument_history__.get("__fn_or_cls__")
    return f"  (node made at {_location(history[-1].location)})" if history else ""


def _location(location: Any) -> str:
    name = location.filename
    near = os.path.relpath(name) if os.path.isabs(name) else name
    return f"{name if near.startswith('..') else near}:{location.line_number}"
