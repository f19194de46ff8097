"""Reading a value that a user typed, by the type of the field it is for."""

import ast
import re
import warnings
from typing import Any, get_origin

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph.annotations import (
    accepts,
    alternatives,
    choices,
    item_hints,
    pretty,
)
from maxfdl.graph.render import brief

_BARE_WORD = re.compile(r"\w[\w.\-]*", re.ASCII)
_WORDS = {"true": True, "false": False}


def parse(text: str) -> Any:
    """Returns the Python literal that `text` is; any other text is a string.

    Never evaluates code. `true` and `false` are accepted for `True` and `False`.
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\." in a pattern is no mistake here
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text


def is_literal_or_word(text: str) -> bool:
    """Says whether `text` is a Python literal or one plain word such as `7b`."""
    return parse(text) is not text or bool(_BARE_WORD.fullmatch(text))


def read(name: str, value: Any, hint: Any) -> Any:
    """Returns `value`, parsed if it is text, as something that fits `hint`.

    `remat=full` needs no quotes, `1` stays text for a `str` field, `inf` is a float
    for a `float` field, and a list literal becomes a tuple where one is wanted.

    Raises:
      ConfigError: If it does not fit.
    """
    tries = [value]
    if isinstance(value, str):
        literal = parse(value)
        tries = [literal, value, *_as_number(value), *_as_sequence(literal, hint)]
    for each in tries:
        if accepts(each, hint):
            return each
    got = tries[0]
    for container in alternatives(hint):
        for key, item, wanted in item_hints(got, container):
            if not accepts(item, wanted):
                read(f"{name}[{key!r}]", item, wanted)  # it has a sentence of its own
    near = did_you_mean(str(got), [c for c in choices(hint) if isinstance(c, str)])
    shown = value if isinstance(value, str) else brief(value)
    raise ConfigError(
        f"{name}={shown}: expected {pretty(hint)}, got {type(got).__name__}"
        f" {brief(got)}.{near}"
    )


def _as_number(text: str) -> list[float]:
    special = re.fullmatch(r"[+-]?(inf|nan)", text.strip(), re.IGNORECASE)
    return [float(text)] if special else []


def _as_sequence(value: Any, hint: Any) -> list[Any]:
    wanted = {get_origin(each) or each for each in alternatives(hint)}
    if isinstance(value, list) and tuple in wanted:
        return [tuple(value)]
    if isinstance(value, tuple) and list in wanted:
        return [list(value)]
    return []
