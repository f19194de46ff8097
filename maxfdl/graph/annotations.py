"""Does a value of a graph fit an annotation?

A `Config` node stands for the object it makes, a `Partial` for a factory of such
objects. Annotations that this file does not know accept everything that has no NaN and
no infinite number in it.
"""

import cmath
import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import fiddle as fdl

_UNKNOWN = (Any, object, inspect.Parameter.empty)
_LOOSE_PACKAGES = ("builtins", "jax", "jaxtyping", "numpy", "typing")
_EXACT = (int, float, complex, str, bool, bytes)
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_LITERALS = (*_EXACT, list, tuple, dict, set, frozenset, type(None))


def strip(hint: Any) -> Any:
    """Returns `hint` without `Annotated` and `NewType` around it."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return strip(hint.__supertype__) if hasattr(hint, "__supertype__") else hint


def pretty(hint: Any) -> str:
    """Returns `hint` as a reader would write it."""
    hint = strip(hint)
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(pretty, get_args(hint))))
    if wants_callable(hint) and get_args(hint):
        return f"Callable[..., {pretty(_result_of(hint))}]"
    origin: Any = get_origin(hint)
    if origin in _SEQUENCES and get_args(hint):
        items = ["..." if arg is Ellipsis else pretty(arg) for arg in get_args(hint)]
        return f"{origin.__name__}[{', '.join(items)}]"
    return str(hint).replace("typing.", "").replace("collections.abc.", "")


def alternatives(hint: Any) -> list[Any]:
    """Returns the members of a union, or the one annotation."""
    hint = strip(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return [each for arg in get_args(hint) for each in alternatives(arg)]
    return [hint]


def choices(hint: Any) -> list[Any]:
    """Returns all values under `Literal` in `hint`."""
    return [
        value
        for each in alternatives(hint)
        if get_origin(each) is Literal
        for value in get_args(each)
    ]


def accepts(value: Any, hint: Any) -> bool:
    """Says whether `value`, plain or a node, fits `hint`."""
    return any(_accepts_one(value, each) for each in alternatives(hint))


def _accepts_one(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if not is_finite(value):
        return False
    if hint in _UNKNOWN or isinstance(hint, str) or value is fdl.NO_VALUE:
        return True
    if isinstance(hint, TypeVar):
        return accepts(value, hint.__bound__ or Any)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(type(value) is type(c) and value == c for c in get_args(hint))
    if isinstance(value, fdl.Partial):
        made = _made_by(fdl.get_callable(value))
        return wants_callable(hint) and _may_be(made, _result_of(hint))
    if isinstance(value, fdl.Buildable):
        return _config_fits(value, hint)
    if wants_callable(hint):
        return callable(value) and _may_be(_made_by(value), _result_of(hint))
    if _is_structural(hint):
        return not isinstance(value, _LITERALS)
    if hint is type or origin is type:
        return _class_fits(value, get_args(hint))
    if hint in _EXACT:
        return _is_exactly(value, hint)
    return _is_instance(value, origin or hint) and _items_fit(value, hint)


def wants_callable(hint: Any) -> bool:
    """Says whether `hint` (no union) is a `Callable`."""
    return hint in (Callable, typing.Callable) or (
        get_origin(hint) is collections.abc.Callable
    )


def _result_of(callable_hint: Any) -> Any:
    args = get_args(callable_hint)
    return strip(args[-1]) if args else Any


def _return_hint(fn: Any) -> Any:
    try:
        return strip(typing.get_type_hints(fn).get("return", Any))
    except (NameError, TypeError, AttributeError):
        return Any


def _made_by(fn: Callable) -> Any:
    """Returns the type of what a callable returns, or `Any`."""
    return fn if isinstance(fn, type) else _return_hint(fn)


def _is_known_class(hint: Any) -> bool:
    # Array and number annotations describe values at run time, which may be tracers;
    # `typing.Any` is a class too, from Python 3.11 on.
    root = getattr(hint, "__module__", "").split(".")[0]
    return isinstance(hint, type) and root not in _LOOSE_PACKAGES


def _may_be(made: Any, wanted: Any) -> bool:
    """Says whether a thing of the type `made` may fit `wanted`, a union or not."""
    return any(_may_be_one(made, each) for each in alternatives(wanted))


def _may_be_one(made: Any, wanted: Any) -> bool:
    if not (_is_known_class(made) and _is_known_class(wanted)):
        return True
    return _is_structural(wanted) or issubclass(made, wanted)


def _is_structural(hint: Any) -> bool:
    """Says whether `hint` is a `Protocol`, which `issubclass` may not understand.

    A literal may have all the methods of one, as a `str` has those of a sequence of
    texts, and still is not meant by it.
    """
    return bool(getattr(hint, "_is_protocol", False))


def wants_node(hint: Any) -> bool:
    """Says whether only nodes (or None) fit `hint`, alone or as items of a list."""
    classes = [each for each in alternatives(hint) if each is not type(None)]
    return bool(classes) and all(map(_wants_node, classes))


def _wants_node(hint: Any) -> bool:
    if wants_callable(hint):
        return True
    if get_origin(hint) in _SEQUENCES:
        return wants_node(get_args(hint)[0])
    return _is_known_class(hint) and hint not in _EXACT


def classes_in(hint: Any) -> list[type]:
    """Returns the classes that nodes under `hint` make, alone or in a list."""
    found = []
    for each in alternatives(hint):
        if wants_callable(each):
            found += classes_in(_result_of(each))
        elif get_origin(each) in _SEQUENCES:
            found += classes_in(get_args(each)[0])
        elif _is_known_class(each):
            found.append(each)
    return found


def is_finite(value: Any) -> bool:
    """Says whether no number in `value`, outside its nodes, is infinite or NaN."""
    if isinstance(value, collections.abc.Mapping):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_finite, value))
    return not isinstance(value, (float, complex)) or cmath.isfinite(value)


def _config_fits(node: fdl.Buildable, hint: Any) -> bool:
    made = _made_by(fdl.get_callable(node))
    if not wants_callable(hint):
        origin = get_origin(hint) or hint
        if isinstance(made, type) and made is not Any and origin in _EXACT:
            return issubclass(made, origin) or (origin is float and made is int)
        return _may_be(made, origin)
    if not isinstance(made, type) or made is Any:
        return True
    wanted = _result_of(hint)
    if _is_known_class(wanted) and issubclass(made, wanted):
        return False  # the factory itself is wanted, not what it makes
    has_call = any("__call__" in vars(base) for base in made.__mro__)
    return has_call and _may_be(_return_hint(made.__call__), wanted)


def _class_fits(value: Any, args: tuple) -> bool:
    if not isinstance(value, type):
        return False
    wanted = [each for arg in args for each in alternatives(arg)]
    classes = [w for w in wanted if isinstance(w, type)]
    return len(classes) < len(wanted) or not args or issubclass(value, tuple(classes))


def _is_exactly(value: Any, hint: type) -> bool:
    if isinstance(value, bool):
        return hint is bool
    if hint is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def _is_instance(value: Any, hint: Any) -> bool:
    if isinstance(value, (str, bytes)) and hint in (
        collections.abc.Sequence,
        collections.abc.Iterable,
        collections.abc.Collection,
    ):
        return False  # a word is not a list of letters
    try:
        return isinstance(value, hint)
    except TypeError:
        return True


def item_hints(value: Any, hint: Any) -> list[tuple[Any, Any, Any]]:
    """Returns `(index or key, item, annotation)` for the items of a container."""
    args, origin = get_args(hint), get_origin(hint)
    if isinstance(value, collections.abc.Mapping):
        if len(args) != 2 or not _is_instance(value, origin):
            return []
        return [(key, item, args[1]) for key, item in value.items()]
    if not args or not isinstance(value, (list, tuple, set, frozenset)):
        return []
    if origin is tuple and args[-1] is not Ellipsis:
        return list(zip(range(len(value)), value, args, strict=False))
    if origin is tuple or len(args) == 1:
        return [(index, item, args[0]) for index, item in enumerate(value)]
    return []


def _items_fit(value: Any, hint: Any) -> bool:
    args = get_args(hint)
    if isinstance(value, tuple) and get_origin(hint) is tuple and args:
        if args[-1] is not Ellipsis and len(args) != len(value):
            return False
    if isinstance(value, collections.abc.Mapping) and len(args) == 2:
        if not all(accepts(key, args[0]) for key in value):
            return False
    return all(accepts(item, each) for _, item, each in item_hints(value, hint))
