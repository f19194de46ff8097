"""Keys and values cached in 8 bits."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.layers.cache import CacheFormat
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.roles import is_attention
from maxfdl.mutations.scope import MODEL, network_in

C = TypeVar("C", bound=fdl.Buildable)
Format = Literal["int8", "fp8"]

_NUMBERS = {"int8": "int8", "fp8": "e4m3"}


def quantize_cache(cfg: C, *, format: Format | None = "int8", under: str = MODEL) -> C:
    """Caches keys and values in 8 bits while text is generated.

    A vector, of a token and a head, has a float32 scale of its own; the latent vectors
    of multi-head latent attention likewise. Training does not change.
    `quantize_cache(format=None)` is the inverse.

    Args:
      cfg: The graph.
      format: `int8`, or `fp8`, which is e4m3; None caches them in the type of
        activations. int8 errs less, unless a few numbers of a vector are far greater
        than the others.
      under: Path of the network.

    Raises:
      MutationError: If there is no attention, or no such format.
    """
    numbers = format and chosen(_NUMBERS, format, "quantize_cache format")
    out = copy(cfg)
    for layer in nodes_of(network_in(out, under), is_attention):
        put(layer, "cache", numbers and fdl.Config(CacheFormat, numbers=numbers))
    return out
