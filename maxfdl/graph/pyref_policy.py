"""Which Python symbols a saved graph may name.

A saved graph is data, and loading or building it must not become a way to run code.
So a symbol must be a class or a function that is defined, under a public name, in a
module of this list. Modules whose functions act on the outside world (entry points,
the graph tools, mutations) are no part of any graph, and are left out.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from fiddle.experimental.serialization import PyrefPolicy

from maxfdl.errors import ConfigError
from maxfdl.graph.names import exists, load_module

# Packages whose classes and functions may be nodes and leaves of a graph.
_OURS = ("maxfdl", "fdl_configs", "experiments")
_STOCK = (
    "flax.linen",
    "flax.nnx.nn",
    "jax.nn",
    "jax._src.nn",
    "optax",
)
# Parts of maxfdl that know Fiddle, files or the command line; none is a node.
_NO_NODES = (
    "maxfdl.graph",
    "maxfdl.mutations",
    "maxfdl.hf",
    "maxfdl.tensors",
    "maxfdl.gguf",
    "maxfdl.report",
    "maxfdl.run",
    "maxfdl.saved_run",
    "maxfdl.files",
    "maxfdl.__main__",
    "maxfdl.commandline",
    "maxfdl.terminal",
    "maxfdl.launch",
    "maxfdl.show",
    "maxfdl.diff",
    "maxfdl.plot",
    "maxfdl.aot",
    "maxfdl.bench",
    "maxfdl.convert",
    "maxfdl.generate",
    "maxfdl.quantize",
)
# Parts of maxfdl whose functions only compute. Elsewhere a function may write files,
# so only classes, which do nothing but hold their fields, can be nodes.
_PURE = (
    "maxfdl.layers",
    "maxfdl.model",
    "maxfdl.ops",
    "maxfdl.optim",
    "maxfdl.sharding",
)
_TAGS = "maxfdl.graph.tags"

# What the format itself is made of.
_METADATA = ("fiddle._src.config", "BuildableTraverserMetadata")
_NODE_TYPES = {
    _METADATA,
    ("fiddle._src.config", "Config"),
    ("fiddle._src.partial", "Partial"),
    *(("builtins", name) for name in ("list", "tuple", "dict", "set", "frozenset")),
    ("builtins", "bytes"),
}
_DTYPES = (
    "bool_ int4 int8 int16 int32 int64 uint4 uint8 uint16 uint32 uint64 bfloat16"
    " float16 float32 float64 float8_e4m3fn float8_e5m2"
).split()


def _is_within(module: str, packages: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


class GraphPolicy(PyrefPolicy):
    """Fiddle's question "may I import this?", answered by the list above.

    Args:
      trust: Packages that the user trusts besides.
    """

    def __init__(self, trust: Sequence[str] = ()):
        self.trust = tuple(trust)

    def allows_import(self, module: str, symbol: str) -> bool:
        if (module, symbol) in _NODE_TYPES:
            return True
        if not _is_public(symbol) or not all(
            p.isidentifier() for p in module.split(".")
        ):
            return False
        if module == "jax.numpy":
            return symbol in _DTYPES
        if module == _TAGS or _is_within(module, self.trust):
            return True
        if _is_within(module, _NO_NODES):
            return False
        return _is_within(module, (*_OURS, *_STOCK))

    def allows_value(self, value: Any) -> bool:
        if inspect.isfunction(value) and _is_within(value.__module__, ("maxfdl",)):
            return _is_within(value.__module__, _PURE)
        return isinstance(value, type) or inspect.isfunction(value)


def _is_public(symbol: str) -> bool:
    return all(
        part.isidentifier() and not part.startswith("_") for part in symbol.split(".")
    )


def is_node_type(module: str, symbol: str) -> bool:
    """Says whether the symbol is a building block of the file format."""
    return (module, symbol) in _NODE_TYPES


def may_stand(module: str, symbol: str, as_type: bool) -> bool:
    """Says whether an allowed symbol is in its place: type of an object, or a leaf."""
    if (module, symbol) == _METADATA:
        return True  # a named tuple, which the format names in both places
    return as_type == is_node_type(module, symbol)


def find_symbol(policy: GraphPolicy, module: str, symbol: str) -> Any:
    """Returns the class or function, importing `module` if the policy allows.

    Raises:
      ConfigError: If it is not allowed, or is not defined there.
    """
    name = f"{module}.{symbol}"
    if not policy.allows_import(module, symbol):
        raise ConfigError(
            f"a saved graph may not name {name!r}: it is outside the packages of"
            " maxfdl and those that you --trust."
        )
    if not exists(module):
        raise ConfigError(f"{name!r} cannot be loaded: there is no module {module!r}.")
    owner = value = load_module(module)
    for part in symbol.split("."):
        owner, value = value, vars(value).get(part)
        if value is None:
            raise ConfigError(f"{name!r} cannot be loaded: {module} has no {symbol!r}.")
        if isinstance(owner, type) and isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
    is_built_in_type = is_node_type(module, symbol)
    defined_here = getattr(value, "__module__", None) == module
    if not (is_built_in_type or (policy.allows_value(value) and defined_here)):
        raise ConfigError(
            f"a saved graph may not name {name!r}: {module} does not define it as a"
            " class or function."
        )
    return value
