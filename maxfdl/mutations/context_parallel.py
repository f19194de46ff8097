"""How attention works on a mesh that cuts sequences."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import chosen, put
from maxfdl.mutations.scope import MODEL, network_in
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.context_parallel import RingAttention, UlyssesAttention

C = TypeVar("C", bound=fdl.Buildable)
Kind = Literal["ring", "ulysses"]
Order = Literal["zigzag", "plain"]

_KINDS = {"ring": RingAttention, "ulysses": UlyssesAttention}
_ORDERS = {"zigzag": None, "plain": "plain"}


def context_parallel(
    cfg: C, *, kind: Kind = "ring", order: Order | None = None, under: str = MODEL
) -> C:
    """Chooses how devices attend that share the tokens of a row: `mesh(context=...)`.

    Same mathematics; sums run in another order. `context_parallel(kind='ring')`, the
    default of every graph, is the inverse.

    Args:
      cfg: The graph.
      kind: `ring`: keys and values go round the devices while these compute, see
        `RingAttention`. `ulysses`: devices exchange tokens for heads and attend whole
        rows, see `UlyssesAttention`; on a GPU its kernels are fused, where the ring is
        plain JAX.
      order: Of a ring: `zigzag` (default) balances the work under a causal mask,
        `plain` leaves shards as they are.
      under: Path of the network.

    Raises:
      MutationError: If there is no attention between tokens, or no such kind or order.
    """
    made = chosen(_KINDS, kind, "context_parallel kind")
    given = order and chosen(_ORDERS, order, "context_parallel order")
    if order is not None and made is not RingAttention:
        raise MutationError(
            f"context_parallel order ({order!r}) is that of a ring, and kind is"
            f" {kind!r}; leave it out."
        )
    if made is RingAttention:
        node = fdl.Config(RingAttention, order=given) if given else None
    else:
        node = fdl.Config(made)
    out = copy(cfg)
    for attention in nodes_of(network_in(out, under), DotProductAttention):
        put(attention, "context_parallel", node and copy(node))
    return out
