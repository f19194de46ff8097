"""Finding nodes."""

from collections.abc import Callable, Iterator
from typing import Any

import fiddle as fdl
from fiddle import daglish

from maxfdl.errors import MutationError

Target = type | Callable[[fdl.Buildable], bool]


def iterate(cfg: Any) -> Iterator[tuple[str, fdl.Buildable]]:
    """Yields `(path, node)`, parents first, each shared node once (first path)."""
    for value, path in daglish.iterate(cfg, memoized=True):
        if isinstance(value, fdl.Buildable):
            yield daglish.path_str(path).removeprefix("."), value


def iterate_paths(cfg: Any) -> Iterator[tuple[str, fdl.Buildable]]:
    """Yields `(path, node)`, parents first, a shared node with each of its paths."""
    for value, path in daglish.iterate(cfg, memoized=False):
        if isinstance(value, fdl.Buildable):
            yield daglish.path_str(path).removeprefix("."), value


def makes(node: fdl.Buildable, *classes: type) -> bool:
    """Says whether a node makes an object of one of these classes."""
    fn = fdl.get_callable(node)
    return isinstance(fn, type) and issubclass(fn, classes)


def _matches(node: fdl.Buildable, target: Target) -> bool:
    return makes(node, target) if isinstance(target, type) else target(node)


def nodes_of(cfg: fdl.Buildable, target: Target) -> list[fdl.Buildable]:
    """Returns the nodes of `cfg` that `target` picks, each shared node once.

    Args:
      cfg: The graph.
      target: A class, whose subclasses match too, or a predicate over nodes.

    Raises:
      MutationError: If there is none, naming what the graph does hold.
    """
    nodes = [node for _, node in iterate(cfg)]
    found = [node for node in nodes if _matches(node, target)]
    if not found:
        have = sorted({fdl.get_callable(node).__qualname__ for node in nodes})
        wanted = target.__qualname__.split(".")[-1].strip("<>")
        raise MutationError(
            f"No {wanted} in this graph, which holds {', '.join(have)}."
            " Has an earlier mutation replaced it?"
        )
    return found
