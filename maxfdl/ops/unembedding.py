"""From hidden vectors to logits: the head's weights as one value.

The loss takes it and may never form the whole [B, T, V] logits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from maxfdl.ops.dot import Dot


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unembedding:
    """`logits = hidden @ kernel`, in float32.

    Args:
      kernel_DV: Weights, gathered and in the type of the hidden vectors. A tied head
        gives the transpose of the embedding table.
      dot: The matrix product.
    """

    kernel_DV: jax.Array
    dot: Dot = dataclasses.field(metadata={"static": True})

    def __call__(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        return self.dot(hidden, self.kernel_DV, out_dtype=jnp.float32)
