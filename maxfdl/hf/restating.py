"""Networks in MaxText's form, as those in the form of published weights."""

from collections.abc import Mapping
from typing import Any

import fiddle as fdl

from fdl_configs.families import family_of
from fdl_configs.maxtext_families import model_types_of, options_from_hf
from fdl_configs.maxtext_forms import in_published_form
from maxfdl import graph
from maxfdl.hf.describing import config_of, plain_network
from maxfdl.layers import nnx
from maxfdl.model import Model, NnxModel
from maxfdl.mutations.family import with_layers_of
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.names import NAMINGS
from maxfdl.tensors.maxtext.options import Options, resolved
from maxfdl.tensors.maxtext.writing import MaxTextTarget
from maxfdl.tensors.on_disk import Held, lazily
from maxfdl.tensors.table import Binding, stored_leaves_of
from maxfdl.tensors.writing import fetch


def as_published(
    network: fdl.Partial, variables: Mapping[str, Any]
) -> tuple[fdl.Partial, Mapping[str, Any]]:
    """Returns a network and its variables in the form of published weights.

    They stay as they are unless the network is in MaxText's form, as
    `maxfdl.maxtext.load` makes it. Else the arrays are made when they are wanted, one
    at a time: names of MaxText tell which of the two networks' arrays are the same.
    """
    if not _is_in_maxtext_form(network):
        return network, variables
    found = _published(with_layers_of(network, "nnx"))
    if found is None:
        return network, variables  # whoever describes it says what is wrong
    made, options = found
    layout = CheckpointLayout("nnx", scanned=True)
    old = MaxTextTarget(_model(with_layers_of(network, "nnx")), options, layout)
    new = MaxTextTarget(_model(made), options, layout)
    same = {binding.theirs: binding for binding in old.bindings}
    held = Held(variables)

    def read(binding: Binding) -> list[Any]:
        mine = same[binding.theirs]
        ours = [fetch(old.model, held, slot) for slot in mine.slots]
        return binding.to_ours(mine.to_theirs(ours, old.config), new.config)

    leaves = stored_leaves_of(new.model)
    return made, lazily(leaves, new.model, new.bindings, read)


def _is_in_maxtext_form(network: Any) -> bool:
    """Says whether a network has what only MaxText's form has."""
    nodes = [node for _, node in graph.iterate(network)]
    own = ("rounded", "count_padding")
    return any(
        fdl.get_callable(node).__name__ == nnx.ZeroCentredLayerNorm.__name__
        or any(name in node.__arguments__ for name in own)
        or getattr(node, "scale", None) == 1.0
        and "scale" in node.__arguments__
        for node in nodes
    )


def _published(network: fdl.Partial) -> tuple[fdl.Partial, Options] | None:
    """Returns the network in the form of a family, and MaxText's options for it."""
    for block in NAMINGS:
        made = in_published_form(network, block)
        config = config_for(plain_network(made), block)
        options = config and options_from_hf(config)
        if options:
            return made, resolved(options, "this graph")
    return None


def config_for(plain: fdl.Partial, block: str) -> Config | None:
    """Returns the config.json of a network in published form, as a decoder of MaxText.

    Args:
      plain: The network, as `plain_network` gives it.
      block: The `decoder_block`, whose families alone are tried.
    """
    families = map(family_of, model_types_of(block))
    configs = (config_of(family, plain) for family in families)
    return next((config for config in configs if config is not None), None)


def _model(network: Any) -> Model:
    return NnxModel(module=graph.build(network))
