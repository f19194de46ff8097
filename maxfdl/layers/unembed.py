"""What heads of both families do with their weights."""

from typing import Any

import jax

from maxfdl.layers.context import Context
from maxfdl.ops.unembedding import Unembedding
from maxfdl.sharding.memory import on_device


def unembedding_of(
    head: Any, weights: jax.Array, axes: tuple[str, str], context: Context
) -> Unembedding:
    """Returns the logits' weights with the fields of a head."""
    return Unembedding(
        weights=on_device(weights),
        axes=axes,
        dtype=head.dtype,
        dot=head.dot,
        scale=head.scale,
        soft_cap=head.soft_cap,
        sharding=context.sharding,
    )
