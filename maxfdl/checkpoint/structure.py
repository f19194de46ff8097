"""What the leaves of a state look like, and how two states differ in that."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from maxfdl.errors import UserError

Structure = dict[str, tuple[tuple[int, ...], str]]
"""Path of a leaf to its shape and the name of its dtype."""

Abstract = Any | Callable[[Structure], Any]
"""What a state looks like: a tree, or a function of the leaves that were saved."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN = 5


def structure_of(state: Any) -> Structure:
    """Returns path, shape and dtype of every leaf, in `jax.tree.leaves` order.

    Raises:
      UserError: If a key is no name (letters, digits, `._-`, at most 64 of them), or if
        two leaves would share one path.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    structure: Structure = {}
    for path, leaf in leaves:
        name = ".".join(_name(key) for key in path)
        if name in structure:
            raise UserError(
                f"Checkpoint state has two leaves called {name!r}; rename one, for a"
                " checkpoint could hold only one of them."
            )
        structure[name] = (tuple(leaf.shape), str(leaf.dtype))
    return structure


def _name(key: Any) -> str:
    name = jax.tree_util.keystr((key,), simple=True)
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"Checkpoint state has the key {name!r}, which must be 1 to 64 letters,"
            " digits, '.', '_' or '-'; rename it."
        )
    return name


def differences(saved: Mapping, wanted: Mapping) -> str:
    """Returns what keeps `saved` from filling `wanted`, or "" if nothing does."""
    common = [path for path in wanted if path in saved]
    shapes = [
        f"{path} {list(saved[path][0])} (here {list(wanted[path][0])})"
        for path in common
        if saved[path][0] != wanted[path][0]
    ]
    dtypes = [
        f"{path} {saved[path][1]} (here {wanted[path][1]})"
        for path in common
        if saved[path][1] != wanted[path][1]
    ]
    parts = (
        ("it lacks", [path for path in wanted if path not in saved]),
        ("it holds also", [path for path in saved if path not in wanted]),
        ("other shapes:", shapes),
        ("other dtypes:", dtypes),
    )
    return "; ".join(f"{what} {listed(paths)}" for what, paths in parts if paths)


def listed(paths: Iterable[str]) -> str:
    """Returns the first few paths, and how many more there are."""
    paths = list(paths)
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
