"""What a node's callable takes: field names, annotations, and who supplies each.

Flax hides NNX constructors: the metaclass `__call__(cls, *args, **kwargs)` makes
`inspect.signature(nnx.Linear)` say `(*args, **kwargs)`, so that Fiddle would accept
any misspelt field. Importing this module publishes the real signature.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import fiddle as fdl
from flax import linen, nnx

from maxfdl.markers import FromParent, Operational


class _ConstructorSignature:
    """`__signature__` of a class, read from its `__init__`; instances have none."""

    def __get__(self, cls: type | None, metaclass: type) -> inspect.Signature:
        if cls is None:
            raise AttributeError("__signature__")
        if cls.__init__ is object.__init__:
            return inspect.Signature()
        signature = inspect.signature(cls.__init__)
        return signature.replace(parameters=list(signature.parameters.values())[1:])


def publish_nnx_signatures() -> None:
    """Makes `inspect.signature`, and so Fiddle, see constructors of NNX classes."""
    metaclass = type(nnx.Module)
    if "__signature__" not in vars(metaclass):
        setattr(metaclass, "__signature__", _ConstructorSignature())  # noqa: B010


publish_nnx_signatures()


@functools.cache
def hints_of(fn: Callable) -> dict[str, Any]:
    is_plain_class = isinstance(fn, type) and not hasattr(fn, "__dataclass_fields__")
    try:
        return typing.get_type_hints(
            fn.__init__ if is_plain_class else fn, include_extras=True
        )
    except (NameError, TypeError):
        # A name that exists only for type checkers hides one hint, not all of them.
        parameters = inspect.signature(fn).parameters.values()
        return {p.name: p.annotation for p in parameters if p.annotation is not p.empty}


def hints(node: fdl.Buildable) -> dict[str, Any]:
    """Returns the annotation of each field of `node`, `Annotated` included."""
    return hints_of(fdl.get_callable(node))


def hint(node: fdl.Buildable, name: str) -> Any:
    """Returns the annotation of one field, or `Any` if it has none."""
    return hints(node).get(name, Any)


def _marks(annotation: Any, marker: type) -> list[Any]:
    """Returns the marks of this kind: instances, or the class itself."""
    if get_origin(annotation) is not Annotated:
        return []
    marks = get_args(annotation)[1:]
    return [mark for mark in marks if mark is marker or isinstance(mark, marker)]


def from_parent(node: fdl.Buildable, name: str) -> bool:
    """Says whether the parent passes `name` when it calls what `node` makes."""
    fn = fdl.get_callable(node)
    if isinstance(fn, type) and issubclass(fn, linen.Module):
        if name in ("parent", "name"):
            return True
    if isinstance(fn, type) and issubclass(fn, nnx.Module) and name == "rngs":
        return True
    return bool(_marks(hint(node, name), FromParent))


def operational(node: fdl.Buildable, name: str) -> Operational | None:
    """Returns the mark that lets a run go on with another value of `name`, if any."""
    for mark in _marks(hint(node, name), Operational):
        return mark() if mark is Operational else mark
    return None


def parameters(node: fdl.Buildable) -> dict[str, inspect.Parameter]:
    """Returns the named parameters of `node`'s callable, in declaration order."""
    return {
        name: p
        for name, p in node.__signature_info__.parameters.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def fields(node: fdl.Buildable) -> list[str]:
    """Returns the names that a graph may set on `node`, in declaration order.

    These are the parameters that the parent does not supply, and any further
    keywords that the node already has (a callable may take `**kwargs`).
    """
    known = parameters(node)
    extra = node.__arguments__ if takes_any_field(node) else ()
    names = [*known, *(n for n in extra if isinstance(n, str) and n not in known)]
    return [name for name in names if not from_parent(node, name)]


def takes_any_field(node: fdl.Buildable) -> bool:
    """Says whether the callable of `node` has `**kwargs`."""
    return bool(node.__signature_info__.has_var_keyword)


def required(node: fdl.Buildable) -> list[str]:
    """Returns the fields that a graph must set: no default, not from the parent."""
    return [
        name
        for name, p in parameters(node).items()
        if p.default is p.empty and not from_parent(node, name)
    ]


def symbol_name(value: Any) -> str:
    """Returns the full dotted name of a class or function."""
    return f"{value.__module__}.{value.__qualname__}"
