"""Prediction of several tokens at once."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.layers import linen, nnx
from maxfdl.mutations.roles import is_loss, is_transformer
from maxfdl.ops.dot import Dot
from maxfdl.ops.initializers import FanIn
from maxfdl.train.loss import LaterTokenLoss

C = TypeVar("C", bound=fdl.Buildable)


def multi_token_prediction(cfg: C, *, depth: int = 1, coefficient: float = 0.3) -> C:
    """Returns a copy of `cfg` that learns to predict `depth` tokens beyond the next.

    Each has a module of its own with a layer like the model's last, see `LaterToken`
    and `LaterTokenLoss`; embedding and head are shared. Generation does not run them.
    `multi_token_prediction(depth=0)` is the inverse.

    Raises:
      MutationError: If there is no model, or no loss.
    """
    out = copy(cfg)
    for model in nodes_of(out, is_transformer):
        for field in ("later_token", "later_tokens"):
            if field in model.__arguments__:
                delattr(model, field)
        if depth:
            model.later_token = _module(model)
            model.later_tokens = depth
    for loss in nodes_of(out, is_loss):
        if depth:
            loss.later_tokens = fdl.Config(LaterTokenLoss, coefficient=coefficient)
        elif "later_tokens" in loss.__arguments__:
            del loss.later_tokens
    return out


def _module(model: fdl.Buildable) -> fdl.Partial:
    family = nnx if fdl.get_callable(model) is nnx.Transformer else linen
    last = model.decoder.stacks[-1]
    stack = copy(last)
    stack.layers, stack.repeats = [copy(last.layers[-1])], 1
    return fdl.Partial(
        family.LaterToken,
        hidden_norm=copy(model.final_norm),
        embedding_norm=copy(model.final_norm),
        projection=fdl.Partial(
            family.Linear, dot=fdl.Config(Dot), initializer=fdl.Config(FanIn)
        ),
        stack=stack,
        final_norm=copy(model.final_norm),
    )
