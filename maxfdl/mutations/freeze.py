"""Which parameters are trained."""

from collections.abc import Sequence
from typing import Any, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.layers.frozen import Frozen
from maxfdl.layers.parameter import DType, Role
from maxfdl.model import Model
from maxfdl.mutations.fields import put
from maxfdl.mutations.scope import MODEL, backend_of

C = TypeVar("C", bound=fdl.Buildable)


def freeze(
    cfg: C,
    *,
    roles: tuple[Role, ...] = (),
    paths: tuple[str, ...] = (),
    dtype: DType | None = None,
    under: str = MODEL,
) -> C:
    """Freezes parameters: they have no gradient and no optimizer state.

    Args:
      cfg: The graph.
      roles: Roles of parameters, such as `embedding`.
      paths: Paths of parameters or layers, such as `decoder.stacks[0]` or
        `**.attention`, see `maxfdl.layers.frozen.Frozen`.
      dtype: Type in which all that is frozen is stored; None leaves it.
      under: Path of the network.

    `unfreeze` is the inverse. Paths are checked when the model is built, for another
    mutation may add what they name.

    Raises:
      MutationError: If neither roles nor paths are given, or if there is no model.
    """
    if not roles and not paths:
        raise MutationError("freeze takes roles or paths; without any it does nothing.")
    out = copy(cfg)
    for backend in nodes_of(backend_of(out, under), Model):
        old = _fields(backend)
        new = {
            "roles": _with(old["roles"], roles),
            "paths": _with(old["paths"], paths),
            "trained_roles": _without(old["trained_roles"], roles),
            "trained_paths": _without(old["trained_paths"], paths),
        }
        _set(backend, new, dtype or old["dtype"])
    return out


def unfreeze(
    cfg: C,
    *,
    roles: tuple[Role, ...] = (),
    paths: tuple[str, ...] = (),
    under: str = MODEL,
) -> C:
    """Trains parameters that `freeze` froze; without roles and paths, all of them.

    What is given takes back the same roles and paths, and is an exception to any others
    that are frozen: `freeze(paths=('decoder',))` and `unfreeze(paths=('**.mlp',))`
    train the feed-forward layers.

    Raises:
      MutationError: If there is no model.
    """
    out = copy(cfg)
    for backend in nodes_of(backend_of(out, under), Model):
        old = _fields(backend)
        kept = {
            "roles": _without(old["roles"], roles),
            "paths": _without(old["paths"], paths),
        }
        if not (roles or paths) or not any(kept.values()):
            put(backend, "frozen", None)
            continue
        exceptions = {
            "trained_roles": _with(old["trained_roles"], _without(roles, old["roles"])),
            "trained_paths": _with(old["trained_paths"], _without(paths, old["paths"])),
        }
        _set(backend, kept | exceptions, old["dtype"])
    return out


def _fields(backend: fdl.Buildable) -> dict[str, Any]:
    """Returns the fields of what is frozen so far, with their defaults."""
    node = getattr(backend, "frozen", None) or fdl.Config(Frozen)
    names = ("roles", "paths", "trained_roles", "trained_paths", "dtype")
    return {name: getattr(node, name) for name in names}


def _set(backend: Any, lists: dict[str, tuple], dtype: DType | None) -> None:
    fields: dict[str, Any] = {name: value for name, value in lists.items() if value}
    if dtype is not None:
        fields["dtype"] = dtype
    backend.frozen = fdl.Config(Frozen, **fields)


def _with(old: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    """Returns both together in one order, so that mutations commute."""
    return tuple(sorted({*old, *more}))


def _without(old: Sequence[str], less: Sequence[str]) -> tuple[str, ...]:
    return tuple(each for each in old if each not in less)
