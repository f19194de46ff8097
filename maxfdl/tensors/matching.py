"""Matches the tensors in the files of a folder with those that a model needs."""

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.ops.state import Declaration
from maxfdl.tensors.layouts import Config, Layout
from maxfdl.tensors.safetensors import TensorReader, is_supported
from maxfdl.tensors.table import (
    EMBEDDING,
    HEAD,
    Binding,
    Leaves,
    NameTable,
    canonical_names,
    why_left_out,
)

_MOST_NAMED = 10


def has_own_head(tensors: TensorReader, table: NameTable) -> bool:
    """Says whether there is a head that differs from the embedding.

    Where config.json ties the two, transformers does so only if they are equal.
    """
    theirs = {table.theirs(EMBEDDING), table.theirs(HEAD)}
    found = canonical_names(tensors.names(), table, theirs)
    return len(found) == 2 and not tensors.are_equal(*found.values())


def check_count(
    leaves: Leaves, tensors: TensorReader, table: NameTable, path: pathlib.Path
) -> None:
    """Refuses a config.json with more layers or experts than there are tensors.

    Otherwise an absurd number would take long to be reported as missing tensors.
    """
    by_expert = any("{expert}" in str(row.theirs) for row in table.rows)
    have = len(tensors.names())
    for parameter in leaves.values():
        experts = parameter.shape[0] if parameter.batched and by_expert else 1
        needed = (parameter.repeats or 1) * experts
        if needed > have:
            raise UserError(
                f"{path} holds {have:,} tensors, fewer than the {needed:,} layers or"
                " experts of its config.json; one of the two belongs to another model."
            )


def match(
    bindings: list[Binding],
    tensors: TensorReader,
    table: NameTable,
    config: Config,
    path: pathlib.Path,
) -> dict[str, str]:
    """Returns the name in the files of each tensor that is needed.

    Raises:
      UserError: Listing all that are missing, superfluous, or of another shape or type.
    """
    wanted = their_shapes(bindings, config)
    spelled = canonical_names(tensors.names(), table, set(wanted))
    head = _head(tensors, table)
    if config["tie_word_embeddings"] and head is not None:
        spelled.setdefault(table.theirs(EMBEDDING), head)
    missing = [name for name in wanted if name not in spelled]
    extra = [
        name
        for name in _left_over(tensors, spelled, table, config)
        if why_left_out(name, table, config) is None
    ]
    misshapen = [
        f"{name} {list(tensors.shape(real))} (must be {list(wanted[name])})"
        for name, real in spelled.items()
        if tensors.shape(real) != wanted[name]
    ]
    unreadable = [
        f"{name} {tensors.code(real)}"
        for name, real in spelled.items()
        if not is_supported(tensors.code(real))
    ]
    parts = (
        ("missing", missing),
        ("in no place of the model", extra),
        ("of another shape", misshapen),
        ("of a type that is not read", unreadable),
    )
    problems = [f"  {what}: {listed(names)}" for what, names in parts if names]
    if problems:
        raise UserError(
            f"{path} does not hold the tensors of its config.json:\n"
            + "\n".join(problems)
        )
    return spelled


def left_out(
    tensors: TensorReader, spelled: dict[str, str], table: NameTable, config: Config
) -> Mapping[str, int]:
    """Returns how many tensors with weights are not used, by the reason."""
    left = _left_over(tensors, spelled, table, config)
    whys = [why_left_out(name, table, config) for name in left]
    counts = collections.Counter(why for why in whys if why and why != "buffers")
    activations = {"quantised activations": tensors.of_activations}
    return counts + collections.Counter(activations)


def their_shapes(bindings: list[Binding], config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of their tensors, by tracing the layouts."""

    # Once for all layers and experts that are alike.
    @functools.cache
    def shapes(layout: Layout, declared: tuple[Declaration, ...]):
        ours = [jax.ShapeDtypeStruct(p.shape, jnp.float32) for p in declared]
        theirs = jax.eval_shape(lambda xs: layout.to_theirs(xs, declared, config), ours)
        return [tuple(x.shape) for x in theirs]

    return {
        name: shape
        for binding in bindings
        for name, shape in zip(
            binding.theirs, shapes(binding.layout, binding.declared), strict=True
        )
    }


def _head(tensors: TensorReader, table: NameTable) -> str | None:
    """Returns the name in the files of the head, if they have one."""
    name = table.theirs(HEAD)
    return canonical_names(tensors.names(), table, {name}).get(name)


def _left_over(
    tensors: TensorReader, spelled: dict[str, str], table: NameTable, config: Config
) -> list[str]:
    """Returns the names in the files that are not used, without a tied head."""
    used = set(spelled.values())
    if config["tie_word_embeddings"]:
        used |= {_head(tensors, table) or ""}
    return sorted(set(tensors.names()) - used)


def listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    rest = f" and {more:,} more" if more > 0 else ""
    return ", ".join(names[:_MOST_NAMED]) + rest
