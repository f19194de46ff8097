"""Finds the options of MaxText that describe a graph."""

import math
from typing import Any

import fiddle as fdl

from fdl_configs.maxtext import published_network
from fdl_configs.maxtext_families import options_from_hf
from fdl_configs.maxtext_forms import in_published_form
from fdl_configs.maxtext_training import training_options
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.hf.describing import plain_network
from maxfdl.hf.restating import config_for
from maxfdl.layers import nnx
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.names import NAMINGS
from maxfdl.tensors.maxtext.options import Options, resolved

VERSIONS = {"linen": "0.2.4", "nnx": "0.2.5"}
"""The MaxText whose checkpoints are written, by its library."""


def options_of(
    model: fdl.Partial, run: Any, layout: CheckpointLayout, origin: Options | None
) -> Options:
    """Returns the options of MaxText that go with a checkpoint of a network.

    Args:
      model: The graph of the network, in either form.
      run: The graph of the experiment whose training MaxText is to go on with; None
        for the parameters alone.
      layout: How the checkpoint is laid out.
      origin: Options of the checkpoint that the weights came from, which are kept where
        they describe the same network.

    Raises:
      UserError: If MaxText has no such network, optimizer or loss.
    """
    plain = plain_network(model)
    found = origin if origin and _is_of(plain, origin) else _network_options(plain)
    version = VERSIONS[layout.framework]
    training = {"maxtext": version} if run is None else training_options(run, version)
    types = {"dtype": model.dtype, "weight_dtype": model.param_dtype}
    scan = {"scan_layers": layout.scanned, "param_scan_axis": layout.axis}
    return {**found, **training, **types, **scan}


def _is_of(plain: fdl.Partial, options: Options) -> bool:
    """Says whether options describe a network."""
    mine = in_published_form(_without_logit_scale(plain)[0], options["decoder_block"])
    theirs = plain_network(published_network(options))
    return mine == in_published_form(theirs, options["decoder_block"])


def _network_options(plain: fdl.Partial) -> Options:
    for block in NAMINGS:
        stripped, normalised = _without_logit_scale(plain)
        config = config_for(in_published_form(stripped, block), block)
        options = None if config is None else options_from_hf(config)
        if options is not None and options["decoder_block"] == block:
            if normalised is not None:
                options["normalize_embedding_logits"] = normalised
            found = resolved(options, "this graph")
            if _is_of(plain, found):
                return found
    raise UserError(
        "MaxText has no decoder like this network: none that"
        f" {', '.join(NAMINGS)} describe; undo what changed it."
    )


def _without_logit_scale(plain: fdl.Partial) -> tuple[fdl.Partial, bool | None]:
    """Returns a network without the factor of its logits, and whether MaxText has it.

    None where the head is no embedding, or the embedding is scaled as Gemma's is.
    """
    out: Any = graph.copy(plain)
    tied = fdl.get_callable(out.head) is nnx.TiedHead
    if not tied or fdl.get_callable(out.embedding) is nnx.ScaledEmbedding:
        return out, None
    scale = out.head.scale
    is_normalised = math.isclose(scale, out.features**-0.5, rel_tol=1e-6)
    if is_normalised:
        del out.head.scale
    return out, is_normalised
