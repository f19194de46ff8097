"""Helpers of mutations that set fields."""

from collections.abc import Mapping
from typing import Any, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError, did_you_mean

T = TypeVar("T")


def put(node: fdl.Buildable, field: str, value: Any) -> None:
    """Sets a field, in place; None restores its default."""
    if value is not None:
        setattr(node, field, value)
    elif field in node.__arguments__:
        delattr(node, field)


def chosen(options: Mapping[str, T], name: str, what: str) -> T:
    """Returns the option called `name`; `what` names the argument in errors.

    Raises:
      MutationError: If there is none.
    """
    if name not in options:
        raise MutationError(
            f"{what} ({name!r}) must be one of {', '.join(options)}."
            + did_you_mean(name, options)
        )
    return options[name]
