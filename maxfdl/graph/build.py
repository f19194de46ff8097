"""From a graph to the objects that it describes."""

import functools
from typing import Any

import fiddle as fdl
from fiddle import daglish

from maxfdl.graph import paths
from maxfdl.graph.validate import validate

_NOTE = "while constructing"


class Factory(functools.partial):
    """What a `Partial` node builds: a partial that knows its place in the graph.

    An error raised when the parent calls it, long after the build, carries the path
    of the node as a note. Two factories are equal if they make the same thing, so two
    builds of a graph compare equal.
    """

    path: str = ""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except Exception as e:
            # The innermost node is the one to look at; those above only contain it.
            if not any(n.startswith(_NOTE) for n in getattr(e, "__notes__", ())):
                name = getattr(self.func, "__qualname__", repr(self.func))
                e.add_note(f"{_NOTE} {name} at {paths.label(self.path)}")
            raise

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Factory):
            return NotImplemented
        return (self.func, self.args, self.keywords) == (
            other.func,
            other.args,
            other.keywords,
        )

    def __hash__(self) -> int:
        return hash((self.func, tuple(sorted(self.keywords))))


class _LocatedPartial(fdl.Partial):
    """A Partial node that builds a `Factory`."""

    def __build__(self, /, *args: Any, **kwargs: Any) -> Factory:
        factory = Factory(fdl.get_callable(self), *args, **kwargs)
        factory.path = self.__dict__["located_at"]
        return factory


def build(cfg: fdl.Buildable) -> Any:
    """Returns what `cfg` describes, after validating it.

    Raises:
      ConfigError: If the graph is not valid.
    """
    return fdl.build(daglish.MemoizedTraversal.run(_locate, validate(cfg)))


def _locate(value: Any, state: daglish.State) -> Any:
    value = state.map_children(value)
    if isinstance(value, fdl.Partial):
        fields = {str(name): each for name, each in value.__arguments__.items()}
        value = _LocatedPartial(fdl.get_callable(value), **fields)
        path = daglish.path_str(state.current_path).removeprefix(".")
        object.__setattr__(value, "located_at", path)
    return value
