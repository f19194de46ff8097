"""Every experiment, found by itself, so that a new one is tested at once."""

import functools
import typing

import fiddle as fdl

from maxfdl import graph
from maxfdl.graph.names import config_names, find_config

MODULES = config_names(["experiments"])


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
