"""What to write instead: suggestions for error messages."""

import difflib
import inspect
from typing import Any

from maxfdl.graph import names
from maxfdl.graph.annotations import classes_in, wants_node


def for_node(hint: Any) -> str:
    """Returns a sentence, after a blank, on how to fill a field that wants a node.

    Returns nothing where a literal may fit `hint`.
    """
    if not wants_node(hint):
        return ""
    for kind, ways in names.ways_to_set().items():
        if any(issubclass(kind, c) or issubclass(c, kind) for c in classes_in(hint)):
            return f" Use {ways} instead."
    return (
        " Only Python can put another node there: see README.md, 'Write an experiment'."
    )


def for_field(name: str, cutoff: float = 0.8) -> str:
    """Returns a sentence, after a blank, on the mutations with an argument `name`.

    Somebody who sets a field that a node does not have may mean the node that a
    mutation would put in its place. Arguments of a similar name count from the ratio
    `cutoff` on; 1 wants the same name.
    """
    calls: dict[str, list[str]] = {}
    for mutation, function in names.mutations().items():
        for argument in list(inspect.signature(function).parameters)[1:]:
            calls.setdefault(argument, []).append(f"{mutation}({argument}=...)")
    close = difflib.get_close_matches(name, calls, n=1, cutoff=cutoff)
    return f" The mutation {' or '.join(calls[close[0]])} sets it." if close else ""
