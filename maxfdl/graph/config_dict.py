"""A graph as an `ml_collections.ConfigDict`, for tools that read those."""

from typing import Any

import fiddle as fdl
from ml_collections import config_dict

from maxfdl.graph.flatten import show
from maxfdl.graph.signatures import symbol_name

CALLABLE_KEY = "__callable__"


def to_config_dict(cfg: fdl.Buildable) -> config_dict.ConfigDict:
    """Returns `cfg` as nested ConfigDicts.

    Each node is a ConfigDict of its set fields, with its type under the key
    `__callable__`, such as `"Partial[maxfdl.layers.nnx.linear.Linear]"`. A list with
    nodes in it is a ConfigDict with the keys `[0]`, `[1]`, ..., so that nested keys
    spell graph paths; other lists, tuples and literals stay what they are. Classes
    and functions become their dotted names. A node that is shared in the graph is one
    ConfigDict in several places.
    """
    return _convert(cfg, {})


def _convert(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, fdl.Buildable):
        if id(value) not in seen:
            seen[id(value)] = _convert_node(value, seen)
        return seen[id(value)]
    if isinstance(value, dict):
        return {key: _convert(item, seen) for key, item in value.items()}
    if type(value) in (list, tuple):
        items = [_convert(item, seen) for item in value]
        if any(isinstance(item, config_dict.ConfigDict) for item in items):
            return config_dict.ConfigDict({f"[{i}]": x for i, x in enumerate(items)})
        return type(value)(items)
    if isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset)):
        return value
    return None if value is None else show(value)


def _convert_node(node: fdl.Buildable, seen: dict[int, Any]) -> config_dict.ConfigDict:
    out = config_dict.ConfigDict(allow_dotted_keys=True)
    name = symbol_name(fdl.get_callable(node))
    out[CALLABLE_KEY] = f"{type(node).__name__}[{name}]"
    for field, value in node.__arguments__.items():
        out[str(field)] = _convert(value, seen)
    return out
