"""Every experiment, found by itself, so that a new one is tested at once.

Those that must be told something, as `pretrain(model=...)`, have tests of their own.
"""

import functools
import inspect
import typing

import fiddle as fdl

from maxfdl import graph
from maxfdl.graph.names import config_names, find_config


def _needs_nothing(module: str) -> bool:
    parameters = inspect.signature(find_config(module)).parameters.values()
    return all(parameter.default is not parameter.empty for parameter in parameters)


MODULES = [*filter(_needs_nothing, config_names(["experiments"]))]


def expressions() -> list[str]:
    """Returns each experiment, and each of its published sizes."""
    found = []
    for module in MODULES:
        hints = typing.get_type_hints(find_config(module))
        sizes = typing.get_args(hints.get("size"))
        found += [module, *(f"{module}(size={size})" for size in sizes[1:])]
    return found


@functools.cache
def experiment(expression: str) -> fdl.Buildable:
    """Returns the graph; no test may change it."""
    return graph.resolve(expression)
