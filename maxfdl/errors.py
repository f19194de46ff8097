"""Errors whose message is the one sentence that a user should read."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input from a user; commands print its message and exit with code 2."""


class ConfigError(UserError):
    """A graph, or an expression that names one, that cannot be used."""


class MutationError(UserError):
    """A mutation that found nothing to change, or cannot be combined."""


def did_you_mean(word: str, options: Iterable[str], limit: int = 3) -> str:
    """Returns ` Did you mean 'x' or 'y'?` for the closest options, or nothing."""
    close = difflib.get_close_matches(word, list(options), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
