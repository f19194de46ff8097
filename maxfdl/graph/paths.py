"""Dotted paths into a graph, such as `model.stacks[0].layers[-1].mlp`."""

import ast
import re

_STEP = re.compile(
    r"""(?:^|\.)(?P<name>[A-Za-z_]\w*)      # a field
      | \[(?P<key>-?\d+|'[^']*'|"[^"]*")\]  # an item of a list, or of a dict
    """,
    re.VERBOSE,
)

Step = str | tuple  # a field name, or a 1-tuple that holds an index or a key


def parse(path: str) -> list[Step] | None:
    """Returns the steps of `path`, or None if it is not a path."""
    steps, at = [], 0
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        name, key = match.group("name", "key")
        steps.append(name if name else (ast.literal_eval(key),))
        at = match.end()
    return steps or None


def join(path: str, step: Step) -> str:
    """Returns `path` with one more step."""
    if isinstance(step, tuple):
        return f"{path}[{step[0]!r}]"
    return f"{path}.{step}" if path else step


def is_inside(path: str, root: str) -> bool:
    """Says whether `path` is `root` or lies below it."""
    return path.startswith(root) and path[len(root) : len(root) + 1] in ("", ".", "[")


def label(path: str) -> str:
    """Returns the path as messages show it: the root has a name too."""
    return path or "<root>"
