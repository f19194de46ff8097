"""Families: a file of graphs and a name table of the same name.

`fdl_configs.models.<family>` has `from_hf(config)` and `to_hf(model)`, between a
normalised config.json and the graph of a model; `maxfdl.hf.names.<family>` its TABLE.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import fiddle as fdl

from maxfdl import graph
from maxfdl.errors import UserError, did_you_mean
from maxfdl.hf import names
from maxfdl.hf.config import Config, normalised
from maxfdl.hf.folder import CONFIG, Folder
from maxfdl.layers.execution import Scan
from maxfdl.mutations.family import with_layers_of
from maxfdl.mutations.roles import is_stack


@dataclasses.dataclass(frozen=True)
class Family:
    """The graphs of one family, by the name of their module."""

    name: str

    def from_hf(self, config: Config) -> fdl.Partial:
        return self._function("from_hf")(config)

    def to_hf(self, model: fdl.Partial) -> Config:
        return self._function("to_hf")(model)

    def _function(self, name: str) -> Callable[..., Any]:
        # By name: graphs know the library, and the library does not import graphs.
        return getattr(importlib.import_module(f"fdl_configs.models.{self.name}"), name)


def network_of(folder: Folder) -> fdl.Partial:
    """Returns the graph of the network that a folder's config.json describes.

    Raises:
      UserError: If there is no such network, naming the file.
    """
    config = folder.config
    try:
        network = family_of(config["model_type"]).from_hf(config)
        graph.validate(network)
        return network
    except UserError as error:
        raise UserError(f"{folder.path / CONFIG}: {error}") from None


def family_of(model_type: str) -> Family:
    """Returns the family of a normalised `model_type`."""
    return Family(names.family_of(model_type))


def describe(
    model: fdl.Partial, family: str | None = None, first: str | None = None
) -> Config:
    """Returns the normalised config.json of which `model` is the graph.

    It is that of the first family that makes the same graph of it, in alphabetical
    order, those with experts last: a mixture of which every layer is dense is the
    dense family's. How a stack runs and what types numbers have does not count.

    Args:
      model: The graph of a network.
      family: The family to take; None looks for it.
      first: Model type of the family to try before others.

    Raises:
      UserError: If no family has such a graph.
    """
    known = list(names.tables())
    if family is not None and family not in known:
        raise UserError(
            f"family ({family}) must be one of {', '.join(known)}."
            f"{did_you_mean(family, known)}"
        )
    plain = _plain(model)
    known.sort(key=_has_experts)
    if first is not None:
        known.sort(key=lambda name: name != names.family_of(first))
    for name in known if family is None else [family]:
        config = _config_of(Family(name), plain)
        if config is not None:
            return config
    raise UserError(
        "no config.json describes this graph: it is none that"
        f" {family or ', '.join(known)} makes; undo what changed the network."
    )


def same_network(model: fdl.Partial, config: Config) -> bool:
    """Says whether a normalised config.json is that of `model`."""
    return family_of(config["model_type"]).from_hf(config) == _plain(model)


def _config_of(family: Family, plain: fdl.Partial) -> Config | None:
    try:
        config = normalised(family.to_hf(plain))
        return config if family.from_hf(config) == plain else None
    # A graph of another family may lack anything that `to_hf` looks for.
    except Exception:
        return None


def _has_experts(family: str) -> bool:
    return any("{expert}" in str(row.theirs) for row in names.tables()[family].rows)


def _plain(model: fdl.Partial) -> fdl.Partial:
    """Returns the graph without what changes no number that a checkpoint holds."""
    plain: Any = with_layers_of(model, "nnx")
    for field in ("dtype", "param_dtype"):
        setattr(plain, field, "float32")
        fdl.clear_tags(plain, field)
    for stack in graph.nodes_of(plain, is_stack):
        graph.swap(stack.execution, Scan)
        if "remat" in stack.__arguments__:
            del stack.remat
    return without_extras(plain)


def without_extras(model: fdl.Partial) -> fdl.Partial:
    """Returns the graph without what is for training alone: the modules that predict
    later tokens, and those that watch scores of attention."""
    plain: Any = graph.copy(model)
    for name in ("later_token", "later_tokens"):
        if name in plain.__arguments__:
            delattr(plain, name)
    for _, node in graph.iterate(plain):
        if "watch" in node.__arguments__:
            del node.watch
    return plain
