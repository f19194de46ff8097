"""Prediction of tokens beyond the next.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.module import Module
from maxfdl.layers.nnx.stack import Stack
from maxfdl.markers import FromParent


class LaterToken(Module):
    """One module of multi-token prediction: looks one token further than the last.

    `h_k = stack(projection([hidden_norm(h_{k-1}); embedding_norm(e_{t+k})]))`, from
    which the shared head makes the logits of token t + k + 1, after `final_norm`.
    DeepSeek-V3, https://arxiv.org/abs/2412.19437, section 2.2. Holds `2 D D` weights
    and those of its parts.

    Args:
      hidden_norm, embedding_norm: Norms of what comes from the module before, and of
        the embedding of the token that this one is told.
      projection: From both to the residual width.
      stack: The layers, one in the paper.
      final_norm: Before the head.
    """

    def __init__(
        self,
        *,
        hidden_norm: Callable[..., Module],
        embedding_norm: Callable[..., Module],
        projection: Callable[..., Linear],
        stack: Callable[..., Stack],
        final_norm: Callable[..., Module],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        widths = {"features": features, "rngs": rngs}
        self.hidden_norm = hidden_norm(**widths)
        self.embedding_norm = embedding_norm(**widths)
        self.projection = projection(
            inputs={"pair": 2, "embed": features},
            outputs={"embed": features},
            rngs=rngs,
        )
        self.stack = stack(**widths)
        self.final_norm = final_norm(**widths)

    def __call__(
        self, h_BTD: jax.Array, e_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what the next module starts from, and what the head takes."""
        at = context.at
        h_BTD = self.hidden_norm(h_BTD, at("hidden_norm"))
        e_BTD = self.embedding_norm(e_BTD, at("embedding_norm"))
        pair_BT2D = jnp.stack([h_BTD, e_BTD], axis=2)
        h_BTD = self.stack(self.projection(pair_BT2D, at("projection")), at("stack"))
        return h_BTD, self.final_norm(h_BTD, at("final_norm"))
