"""The language that names a config: `experiments.x(size="7b")+to_linen+...`.

An expression is a base and any number of `+mutation(...)` steps. The base is a dotted
name, with literal arguments or without, or the path of a saved graph (`.json`).
Nothing is evaluated: arguments are Python literals, plain words, or paths and globs.
"""

import dataclasses
import re

from maxfdl.errors import ConfigError
from maxfdl.graph.literals import needs_no_quotes
from maxfdl.paths import as_path

_CALL = re.compile(
    r"\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*(?:\((.*)\)\s*)?", re.DOTALL
)
_KEYWORD = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)
_OPEN, _CLOSE = "([{", ")]}"


@dataclasses.dataclass(frozen=True)
class Call:
    """A dotted name and its arguments, which are still text.

    Attributes:
      name: The dotted name.
      args: Positional arguments.
      kwargs: `(name, text)` of the keyword arguments.
    """

    name: str
    args: tuple[str, ...] = ()
    kwargs: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class SavedGraph:
    """The path of a `config.json`."""

    path: str


def parse(expression: str) -> tuple[Call | SavedGraph, list[Call]]:
    """Returns the base of `expression` and its mutations.

    Raises:
      ConfigError: If it is not an expression.
    """
    file = _file_prefix(expression)
    parts = split(expression[len(file) :], "+")
    base = SavedGraph(file) if file else _parse_base(parts[0])
    return base, [parse_call(part) for part in parts[1:]]


def _file_prefix(expression: str) -> str:
    """The longest beginning, up to a `+`, that is a `.json` file, or nothing.

    A file name may have a `+` in it, so what exists decides.
    """
    ends = [i for i, char in enumerate(expression) if char == "+"]
    for end in [len(expression), *reversed(ends)]:
        name = expression[:end]
        if name.endswith(".json") and as_path(name).is_file():
            return name
    return ""


def _parse_base(text: str) -> Call:
    if text.endswith(".json"):
        raise ConfigError(f"there is no file {text!r}.")
    return parse_call(text)


def parse_call(text: str) -> Call:
    """Returns the parts of `name` or `name(literals)`.

    Raises:
      ConfigError: If it is neither.
    """
    match = _CALL.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{text!r} is not a name, nor name(argument=literal), nor a saved .json"
            " graph."
        )
    name, inside = match.groups()
    args, kwargs = [], {}
    for part in split(inside, ",") if inside and inside.strip() else []:
        keyword = _KEYWORD.fullmatch(part)
        key, value = keyword.groups() if keyword else ("", part)
        value = value.strip()
        _refuse_code(text, key, value)
        if key in kwargs:
            raise ConfigError(f"{text!r} sets {key} twice.")
        if not key and kwargs:
            raise ConfigError(f"{text!r} has {value} after a keyword argument.")
        if key:
            kwargs[key] = value
        else:
            args.append(value)
    return Call(name, tuple(args), tuple(kwargs.items()))


def _refuse_code(text: str, key: str, value: str) -> None:
    if not value or not needs_no_quotes(value):
        what = f"{key}={value}" if key else value or "nothing"
        raise ConfigError(
            f"{text!r}: an argument must be a Python literal or a plain word, got"
            f" {what}."
        )


def split(text: str, separator: str) -> list[str]:
    """Splits at `separator` outside quotes and brackets.

    Raises:
      ConfigError: If a quote or a bracket is left open.
    """
    parts, start, depth, quote, skip = [], 0, 0, "", False
    for i, char in enumerate(text):
        if skip:
            skip = False
        elif quote:
            skip = char == "\\"
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif char == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if quote or depth:
        raise ConfigError(
            f"{text!r} has an unbalanced {'quote' if quote else 'bracket'}."
        )
    return [*parts, text[start:]]
