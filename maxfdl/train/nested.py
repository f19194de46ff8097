"""Parts of nested dicts, such as the parameters of one layer."""

from collections.abc import Mapping, Sequence
from typing import Any

Tree = Mapping[str, Any]


def part_at(tree: Tree, path: Sequence[str]) -> Any | None:
    """Returns what lies at `path`; None where there is nothing."""
    node: Any = tree
    for name in path:
        if not isinstance(node, Mapping) or name not in node:
            return None
        node = node[name]
    return node


def with_part(tree: Tree, path: Sequence[str], part: Any) -> Any:
    """Returns a copy of `tree` that has `part` at `path`."""
    if not path:
        return part
    name, *rest = path
    return {**tree, name: with_part(tree[name], rest, part)}
