"""Finds the config.json that describes a graph."""

from typing import Any

import fiddle as fdl

from fdl_configs.families import FAMILIES, Family, family_of
from maxfdl import graph
from maxfdl.errors import UserError, did_you_mean
from maxfdl.layers.execution import Scan
from maxfdl.mutations.family import with_layers_of
from maxfdl.mutations.products import is_matrix_product, use_no_recipe
from maxfdl.mutations.roles import is_stack
from maxfdl.tensors import names
from maxfdl.tensors.hugging_face.config import Config, normalised


def describe(
    model: fdl.Partial, family: str | None = None, first: str | None = None
) -> Config:
    """Returns the normalised config.json of which `model` is the graph.

    Families are tried in alphabetical order, those with experts last; the first whose
    config.json gives the same graph is taken. A model whose layers are all dense is so
    described as a dense family. Remat, scan or unroll, dtypes, products by a recipe and
    kernels in few bits do not count.

    Args:
      model: The graph of a network.
      family: The family to take; None looks for it.
      first: Model type of the family to try before others.

    Raises:
      UserError: If no family has such a graph.
    """
    if family is not None and family not in FAMILIES:
        raise UserError(
            f"family ({family}) must be one of {', '.join(FAMILIES)}."
            f"{did_you_mean(family, FAMILIES)}"
        )
    plain = plain_network(model)
    known = sorted(FAMILIES.values(), key=_has_experts)
    if first is not None:
        known.sort(key=lambda each: each != family_of(first))
    for each in known if family is None else [FAMILIES[family]]:
        config = config_of(each, plain)
        if config is not None:
            return config
    raise UserError(
        "no config.json describes this graph: it is none that"
        f" {family or ', '.join(each.name for each in known)} makes; undo what changed"
        " the network."
    )


def same_network(model: fdl.Partial, config: Config) -> bool:
    """Says whether a normalised config.json is that of `model`."""
    return family_of(config["model_type"]).from_hf(config) == plain_network(model)


def config_of(family: Family, plain: fdl.Partial) -> Config | None:
    try:
        config = normalised(family.to_hf(plain))
        return config if family.from_hf(config) == plain else None
    # A graph of another family may lack anything that `to_hf` looks for.
    except Exception:
        return None


def _has_experts(family: Family) -> bool:
    rows = names.TABLES[family.name].rows
    return any("{expert}" in str(row.theirs) for row in rows)


def plain_network(model: fdl.Partial) -> fdl.Partial:
    """Returns the graph with defaults for all that does not change the weights."""
    plain: Any = with_layers_of(model, "nnx")
    for field in ("dtype", "param_dtype"):
        setattr(plain, field, "float32")
        fdl.clear_tags(plain, field)
    for _, node in graph.iterate(plain):
        if is_matrix_product(node):
            use_no_recipe(node)
        if "storage" in node.__arguments__:
            del node.storage
    for stack in graph.nodes_of(plain, is_stack):
        graph.swap(stack.execution, Scan)
        if "remat" in stack.__arguments__:
            del stack.remat
    return without_extras(plain)


def without_extras(model: fdl.Partial) -> fdl.Partial:
    """Returns the graph without what only training needs: the modules of multi-token
    prediction, and the watch of attention scores."""
    plain: Any = graph.copy(model)
    for name in ("later_token", "later_tokens"):
        if name in plain.__arguments__:
            delattr(plain, name)
    for _, node in graph.iterate(plain):
        if "watch" in node.__arguments__:
            del node.watch
    return plain
