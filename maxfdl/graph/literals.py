"""Reading a value that a user typed, by the type of the field it is for."""

import ast
import re
import warnings
from typing import Any, get_origin

from maxfdl.errors import ConfigError, did_you_mean
from maxfdl.graph import advice
from maxfdl.graph.annotations import (
    accepts,
    alternatives,
    choices,
    is_finite,
    item_hints,
    pretty,
)
from maxfdl.graph.render import brief

_BARE_WORD = re.compile(r"\w[\w.\-]*", re.ASCII)
_BARE_PATH = re.compile(r"(?=.*[/*~])[\w./~*?][\w./~*?\-]*")
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


def needs_no_quotes(text: str) -> bool:
    """Says whether `text` is a Python literal, a word such as `7b`, or a path or glob.

    Paths have letters, digits and `./~*?-_`; any other is to be quoted.
    """
    is_text = _BARE_WORD.fullmatch(text) or _BARE_PATH.fullmatch(text)
    return parse(text) is not text or bool(is_text)


def read(name: str, value: Any, hint: Any) -> Any:
    """Returns `value`, parsed if it is text, as something that fits `hint`.

    `remat=full` needs no quotes, `1` stays text for a `str` field, and a list literal
    becomes a tuple where one is wanted.

    Raises:
      ConfigError: If it does not fit.
    """
    tries = [value]
    if isinstance(value, str):
        literal = parse(value)
        tries = [literal, *_as_sequence(literal, hint), value]
    for each in tries:
        if accepts(each, hint):
            return each
    got = tries[0]
    for container in alternatives(hint):
        for key, item, wanted in item_hints(got, container):
            if not accepts(item, wanted):
                read(f"{name}[{key!r}]", item, wanted)  # it has a sentence of its own
    shown = value if isinstance(value, str) else brief(value)
    if float in alternatives(hint) and not is_finite(_number(got)):
        raise ConfigError(f"{name}={shown}: a number must be finite.")
    near = did_you_mean(str(got), [c for c in choices(hint) if isinstance(c, str)])
    if accepts((got,), hint) or accepts([got], hint):
        near = f" Write [{brief(got)}] for a list of one."
    raise ConfigError(
        f"{name}={shown}: expected {pretty(hint)}, got {type(got).__name__}"
        f" {brief(got)}.{near}{advice.for_node(hint)}"
    )


def _number(value: Any) -> Any:
    """Returns the float that a word such as `inf` spells; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _as_sequence(value: Any, hint: Any) -> list[Any]:
    wanted = {get_origin(each) or each for each in alternatives(hint)}
    if isinstance(value, list) and tuple in wanted:
        return [tuple(value)]
    if isinstance(value, tuple) and list in wanted:
        return [list(value)]
    return []
