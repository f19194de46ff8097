"""Multi-token prediction."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of, swap
from maxfdl.graph.select import makes
from maxfdl.layers import linen, nnx
from maxfdl.layers.execution import Scan
from maxfdl.layers.pipeline import Pipeline
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_linear, is_loss, is_of_nnx, is_transformer
from maxfdl.mutations.scope import network_in
from maxfdl.train.loss import LaterTokenLoss

C = TypeVar("C", bound=fdl.Buildable)


def multi_token_prediction(cfg: C, *, depth: int = 1, coefficient: float = 0.3) -> C:
    """Trains the model to predict `depth` tokens beyond the next one, too.

    Multi-token prediction. Each of these tokens is predicted by a module of its own,
    with a layer like the model's last, see `LaterToken`; embedding and head are shared.
    `coefficient` is the weight of their loss, see `LaterTokenLoss`. Generation does not
    run the modules.
    `multi_token_prediction(depth=0)` is the inverse.

    Raises:
      MutationError: If there is no model, or no loss.
    """
    out = copy(cfg)
    for model in nodes_of(network_in(out), is_transformer):
        put(model, "later_token", _module(model) if depth else None)
        put(model, "later_tokens", depth or None)
    for loss in nodes_of(out, is_loss):
        term = fdl.Config(LaterTokenLoss, coefficient=coefficient)
        put(loss, "later_tokens", term if depth else None)
    return out


def _module(model: fdl.Buildable) -> fdl.Partial:
    family = nnx if is_of_nnx(model) else linen
    last = model.decoder.stacks[-1]
    stack = copy(last)
    stack.layers, stack.repeats = [copy(last.layers[-1])], 1
    if makes(stack.execution, Pipeline):
        swap(stack.execution, Scan)  # one layer is no pipeline
    return fdl.Partial(
        family.LaterToken,
        hidden_norm=copy(model.final_norm),
        embedding_norm=copy(model.final_norm),
        projection=_projection(last.layers[-1]),
        stack=stack,
        final_norm=copy(model.final_norm),
    )


def _projection(layer: fdl.Buildable) -> fdl.Buildable:
    """Returns a copy of a projection of the layer, without bias.

    Its `dot` is that of the rest of the model, whatever mutations have put there.
    """
    projection = copy(nodes_of(layer, is_linear)[0])
    put(projection, "use_bias", None)
    return projection
