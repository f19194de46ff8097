"""From an expression to a graph."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import fiddle as fdl

from maxfdl import outside
from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import literals, names, serialise
from maxfdl.graph.expression import Call, SavedGraph, parse
from maxfdl.graph.overrides import set_value
from maxfdl.graph.render import brief
from maxfdl.graph.signatures import hints_of

_EMPTY = inspect.Parameter.empty


def resolve(
    expression: str,
    sets: Iterable[str | tuple[str, Any]] = (),
    trust: Sequence[str] = (),
) -> fdl.Buildable:
    """Returns the graph that `expression` names.

    Args:
      expression: `experiments.x`, `experiments.x(size="7b")`, either followed by
        `+mutation(...)` steps, or the path of a saved `config.json`.
      sets: Values to set at the end: `"path=value"` as on the command line, or
        `(path, value)`.
      trust: Packages that names may come from, besides our own.

    Raises:
      ConfigError: If the expression, a name, an argument or a path is wrong.
      MutationError: If a mutation refuses the graph.
    """
    base, steps = parse(expression)
    cfg = load(base.path, trust) if isinstance(base, SavedGraph) else make(base, trust)
    for step in steps:
        cfg = mutate(cfg, step, trust)
    for each in sets:
        cfg = set_value(
            cfg, *(split_assignment(each) if isinstance(each, str) else each)
        )
    return cfg


def split_assignment(text: str) -> tuple[str, str]:
    """Returns path and value of `path=value`."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{text!r} must be path=value.")
    return path.strip(), value


def load(path: str, trust: Sequence[str] = ()) -> fdl.Buildable:
    """Returns the graph saved in the file `path`."""
    text = outside.read_text(path)
    try:
        return serialise.load_json(text, trust)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e


def make(call: Call, trust: Sequence[str] = ()) -> fdl.Buildable:
    """Returns the graph that a config function makes."""
    fn = names.find_config(call.name, trust)
    args, kwargs = _arguments(call, fn, ())
    return _graph_from(call.name, fn(*args, **kwargs))


def mutate(cfg: fdl.Buildable, call: Call, trust: Sequence[str] = ()) -> fdl.Buildable:
    """Returns the new graph that a mutation makes of `cfg`."""
    fn = names.find_mutation(call.name, trust)
    args, kwargs = _arguments(call, fn, (cfg,))
    return _graph_from(call.name, fn(*args, **kwargs))


def _graph_from(name: str, made: Any) -> fdl.Buildable:
    if not isinstance(made, fdl.Buildable):
        raise ConfigError(
            f"{name} must return a graph (fdl.Config), got {brief(made)}."
        )
    return made


def _arguments(
    call: Call, fn: Callable, first: tuple
) -> tuple[list[Any], dict[str, Any]]:
    """Reads the arguments of `call` by the types of `fn`; `first` come before them.

    Arguments without a name fill the parameters in order, keyword-only ones too, so
    that `remat(full)` may be written.
    """
    parameters = inspect.signature(fn).parameters
    known = [
        name
        for name, p in list(parameters.items())[len(first) :]
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(call.args) > len(known):
        raise ConfigError(
            f"{call.name} got {len(call.args)} arguments. It takes {_listing(known)}."
        )
    hints = hints_of(fn)
    for name, _ in call.kwargs:
        if name not in known:
            raise ConfigError(
                f"{call.name} has no argument {name!r}.{did_you_mean(name, known)}"
                f" It takes {_listing(known)}."
            )
    given = [*zip(known, call.args, strict=False), *call.kwargs]
    values = {}
    for name, text in given:
        if name in values:
            raise ConfigError(f"{call.name} got {name} twice.")
        values[name] = literals.read(f"{call.name}: {name}", text, hints.get(name, Any))
    missing = [n for n in known if parameters[n].default is _EMPTY and n not in values]
    if missing:
        raise ConfigError(f"{call.name} needs {_listing(missing)}.")
    return list(first), values


def _listing(names_: Sequence[str]) -> str:
    return ", ".join(names_) or "no arguments"
