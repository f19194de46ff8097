"""Setting one value of a graph by its path, typed by the field's annotation."""

import copy as copylib
import difflib
import functools
import inspect
from typing import Any, NoReturn

import fiddle as fdl
from fiddle import history, tagging

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import advice, literals, paths
from maxfdl.graph.annotations import alternatives, item_hints
from maxfdl.graph.mutate import C, copy
from maxfdl.graph.render import brief
from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import (
    fields,
    from_parent,
    hint,
    parameters,
    takes_any_field,
)

# "Who set it" means the caller of set_value, not this file.
history.add_exclude_location("maxfdl/graph/overrides.py")


def settable_paths(cfg: fdl.Buildable) -> list[str]:
    """Returns the path of every field that may be set, set or not."""
    return [
        paths.join(path, name) for path, node in iterate(cfg) for name in fields(node)
    ]


def set_value(cfg: C, path: str, value: Any) -> C:
    """Returns a copy of `cfg` with the field at `path` set.

    Args:
      cfg: The graph.
      path: Where, such as `model.stacks[0].layers[-1].mlp.features`.
      value: The value. Text is read by the field's type: see `literals.read`.

    Raises:
      ConfigError: If there is no such path, if a parent supplies the field, or if
        the value is not of its type.
    """
    steps = paths.parse(path)
    if steps is None:
        raise ConfigError(
            f"{path!r} is not a path; write names and indices, such as"
            " model.stacks[0].repeats."
        )
    out = copy(cfg)
    _Setter(out, path, value).assign(out, steps, "", Any)
    return out


class _Setter:
    """One assignment on its way down the graph."""

    def __init__(self, cfg: fdl.Buildable, path: str, value: Any):
        self.cfg, self.path, self.value = cfg, path, value

    def assign(self, at: Any, steps: list, seen: str, expected: Any) -> Any:
        """Returns what replaces `at`: itself, or a new tuple."""
        if not steps:
            return literals.read(self.path, self.value, expected)
        if isinstance(at, fdl.Buildable):
            return self.assign_field(at, steps, seen)
        if isinstance(at, dict) or (
            isinstance(at, (list, tuple)) and isinstance(steps[0], tuple)
        ):
            return self.assign_item(at, steps, seen, expected)
        self.fail(f"{paths.label(seen)} is {_kind(at)}.")

    def assign_field(self, node: fdl.Buildable, steps: list, seen: str) -> Any:
        name, rest = steps[0], steps[1:]
        here = paths.join(seen, name)
        if isinstance(name, tuple):
            self.fail(f"{paths.label(seen)} is a node, whose fields have names.")
        if from_parent(node, name) and name in parameters(node):
            raise ConfigError(
                f"{here} is passed by the parent; set the owning field instead"
            )
        if name not in fields(node) and not takes_any_field(node):
            owner = f"{paths.label(seen)} ({fdl.get_callable(node).__name__})"
            near = self.near(name, seen, rest, fields(node))
            self.fail(f"{owner} has no field {name!r}.{near}")
        child = node.__arguments__.get(name, _default(node, name))
        if rest and child is inspect.Parameter.empty:
            self.fail(f"{here} is not set.")
        setattr(node, name, self.assign(child, rest, here, hint(node, name)))
        return node

    def assign_item(self, at: Any, steps: list, seen: str, expected: Any) -> Any:
        key = steps[0][0] if isinstance(steps[0], tuple) else steps[0]
        here, keys = paths.join(seen, (key,)), list(at)
        if not isinstance(at, dict):
            keys = range(len(at))
            key += len(at) if isinstance(key, int) and key < 0 else 0
        if key not in keys:
            self.fail(f"{seen} has {_inventory(at)}.")
        item = self.assign(at[key], steps[1:], here, _item_hint(at, key, expected))
        if isinstance(at, tuple):
            return (*at[:key], item, *at[key + 1 :])
        at[key] = item
        return at

    def near(self, name: str, seen: str, rest: list, names: list[str]) -> str:
        """What the path may have meant: a near field here, or the same field below."""
        known = settable_paths(self.cfg)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
        meant = [_rest_of(paths.join(seen, field), rest) for field in close]
        meant = [path for path in meant if path in set(known)]
        meant = meant or [path for path in known if path.endswith(f".{self.path}")]
        if meant:
            near = f" Did you mean {' or '.join(map(repr, meant[:3]))}?"
            return near + advice.for_field(name, cutoff=1)
        fields_below = (step for step in rest if isinstance(step, str))
        return (
            next(filter(None, map(advice.for_field, [name, *fields_below])), "")
            or did_you_mean(self.path, known)
            or f" It has {', '.join(names) or 'no fields'}."
        )

    def fail(self, reason: str) -> NoReturn:
        raise ConfigError(f"no such path {self.path!r}: {reason}")


def _rest_of(path: str, rest: list) -> str:
    return functools.reduce(paths.join, rest, path)


def _default(node: fdl.Buildable, name: str) -> Any:
    """A copy of the default, for a path that goes on into it."""
    known = parameters(node)
    default = known[name].default if name in known else inspect.Parameter.empty
    return copylib.copy(default) if isinstance(default, (list, dict)) else default


def _kind(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__}, which wants an index"
    return f"{brief(value)}, which has no fields"


def _inventory(container: Any) -> str:
    if isinstance(container, dict):
        return f"the keys {', '.join(map(repr, container))}"
    count = len(container)
    return f"{count} item{'s' * (count != 1)}, counted from 0"


def _item_hint(container: Any, key: Any, expected: Any) -> Any:
    for each in alternatives(expected):
        for at, _, item_hint in item_hints(container, each):
            if at == key:
                return item_hint
    return Any


def set_tag(cfg: C, tag_name: str, value: Any) -> C:
    """Returns a copy of `cfg` with every field that has the tag set.

    Args:
      cfg: The graph.
      tag_name: `ComputeDType`, or the full `maxfdl.graph.tags.ComputeDType`.
      value: The value; text is read by each field's type.

    Raises:
      ConfigError: If no field has such a tag, or the value is not of its type.
    """
    tags = tagging.list_tags(cfg, add_superclasses=True)
    wanted = {tag for tag in tags if tag_name in (tag.__name__, tag.name)}
    if not wanted:
        names = sorted(tag.__name__ for tag in tags)
        near = (
            did_you_mean(tag_name, names)
            or f" There are: {', '.join(names) or 'none'}."
        )
        raise ConfigError(f"no tag {tag_name!r} in this graph.{near}")
    out = copy(cfg)
    for path, node in iterate(out):
        for name, has in list(node.__argument_tags__.items()):
            tagged = any(issubclass(tag, tuple(wanted)) for tag in has)
            if tagged and isinstance(name, str) and not from_parent(node, name):
                at = paths.join(path, name)
                setattr(node, name, literals.read(at, value, hint(node, name)))
    return out
