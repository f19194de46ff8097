"""Which implementations of attention a graph will run with."""

import fiddle as fdl

from maxfdl import graph
from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.fused_attention import Demand


def attention_of(config: fdl.Buildable) -> list[str]:
    """Returns what each attention op of the graph trains with on this platform."""
    training = Demand(is_packed=True)  # as the rows of every batch are
    made = [(fdl.get_callable(node), node) for _, node in graph.iterate(config.model)]
    return sorted(
        {
            graph.build(node).resolve(dtype=config.model.dtype, demand=training)
            for cls, node in made
            if isinstance(cls, type) and issubclass(cls, DotProductAttention)
        }
    )
