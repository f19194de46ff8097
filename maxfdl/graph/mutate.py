"""The two moves that mutations are made of: copy the graph, swap a callable."""

import copy as copylib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import fiddle as fdl
from fiddle import history

from maxfdl.errors import MutationError, did_you_mean
from maxfdl.graph.select import iterate
from maxfdl.graph.signatures import fields, operational, parameters, symbol_name

C = TypeVar("C", bound=fdl.Buildable)

# "Who set it" means the mutation that called swap, not this file.
history.add_exclude_location("maxfdl/graph/mutate.py")


def copy(cfg: C) -> C:
    """Returns a deep copy of `cfg` in which shared nodes are still shared."""
    return copylib.deepcopy(cfg)


def without_operational(cfg: C) -> C:
    """Returns a copy without what may differ between starts of one run.

    Fields that are marked operational are left out, and a node whose class says that it
    is `equivalent_to` another class becomes a node of that.
    """
    out = copy(cfg)
    nodes = [node for _, node in iterate(out)]
    for node in nodes:
        # Of the class itself: one that inherits from it may compute something else.
        of_class = getattr(fdl.get_callable(node), "__dict__", {})
        plain = of_class.get("equivalent_to")
        if plain is not None:
            swap(node, plain)
        for name in fields(node):
            mark = operational(node, name)
            if mark is None or name not in node.__arguments__:
                continue
            if all(_has(each, mark.where_all) for each in nodes):
                delattr(node, name)
    return out


def _has(node: fdl.Buildable, attribute: str) -> bool:
    """Returns a class attribute of a node; true where its class has none."""
    return not attribute or getattr(fdl.get_callable(node), attribute, True)


def swap(node: fdl.Buildable, target: Callable, **changes: Any) -> None:
    """Makes `node` build `target`, in place, so that its path and sharing stay.

    Fields that both callables have keep their value and tags; fields that `target`
    lacks are dropped; `changes` are set last. A field that is not set keeps its
    meaning: if the defaults differ, or `target` has none, the old default is
    written down. Nothing changes if the swap is refused.

    Raises:
      MutationError: If `target` has no field of a name in `changes`, or if the node
        has positional arguments.
    """
    goal = type(node)(target)
    _refuse_bad_swap(node, goal, changes)
    kept = _lost_defaults(node, goal, changes)
    if fdl.get_callable(node) is not target:
        fdl.update_callable(node, target, drop_invalid_args=True)
        _refresh_tags(node, goal)
    fdl.assign(node, **kept, **changes)


def _refuse_bad_swap(node: fdl.Buildable, goal: fdl.Buildable, changes: dict) -> None:
    name = symbol_name(fdl.get_callable(goal))
    if any(isinstance(key, int) for key in node.__arguments__):
        raise MutationError(
            f"{symbol_name(fdl.get_callable(node))} has positional arguments, so it"
            f" cannot become {name}; set its fields by keyword."
        )
    for field in changes:
        if (
            field not in parameters(goal)
            and not goal.__signature_info__.has_var_keyword
        ):
            raise MutationError(
                f"{name} has no field {field!r}."
                + (did_you_mean(field, fields(goal)) or _listing(fields(goal)))
            )


def _listing(names: list[str]) -> str:
    return f" It has {', '.join(names) or 'none'}."


def _lost_defaults(
    node: fdl.Buildable, goal: fdl.Buildable, changes: dict
) -> dict[str, Any]:
    """Defaults that unset fields have now and would lose by becoming `goal`."""
    new = parameters(goal)
    return {
        name: old.default
        for name, old in parameters(node).items()
        if name in fields(node)
        and name in new
        and name in fields(goal)
        and name not in node.__arguments__
        and name not in changes
        and _is_value(old.default)
        and not _same(old.default, new[name].default)
    }


def _is_value(default: Any) -> bool:
    # A dataclass field with a default_factory shows a private sentinel here.
    return default is not inspect.Parameter.empty and repr(default) != "<factory>"


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(a == b))


def _refresh_tags(node: fdl.Buildable, goal: fdl.Buildable) -> None:
    """Drops tags of fields that are gone; adds those that the new callable has."""
    for name in list(node.__argument_tags__):
        if name not in parameters(goal) and name not in node.__arguments__:
            del node.__argument_tags__[name]
    for name, tags in goal.__argument_tags__.items():
        for tag in tags - node.__argument_tags__[name]:
            fdl.add_tag(node, name, tag)
