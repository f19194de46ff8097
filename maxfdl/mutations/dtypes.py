"""Types of activations and of stored parameters."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.layers.parameter import DType
from maxfdl.mutations.roles import is_transformer
from maxfdl.mutations.scope import MODEL, network_in

C = TypeVar("C", bound=fdl.Buildable)


def compute_dtype(cfg: C, *, dtype: DType = "bfloat16", under: str = MODEL) -> C:
    """Computes activations and matrix products in the type `dtype`.

    Norms, softmax, logits and the loss stay float32. The inverse sets the type that
    was there, usually `compute_dtype(dtype=float32)`.

    Raises:
      MutationError: If there is no model.
    """
    out = copy(cfg)
    for model in nodes_of(network_in(out, under), is_transformer):
        model.dtype = dtype
    return out


def param_dtype(cfg: C, *, dtype: DType = "float32", under: str = MODEL) -> C:
    """Stores parameters in the type `dtype`.

    The inverse sets the type that was there, usually `param_dtype(dtype=float32)`.

    Raises:
      MutationError: If there is no model.
    """
    out = copy(cfg)
    for model in nodes_of(network_in(out, under), is_transformer):
        model.param_dtype = dtype
    return out
