"""Prediction of tokens beyond the next.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.linear import Linear
from maxfdl.layers.stack import Stack
from maxfdl.markers import FromParent


class LaterToken(Layer):
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

    hidden_norm: Callable[..., Module]
    embedding_norm: Callable[..., Module]
    projection: Callable[..., Linear]
    stack: Callable[..., Stack]
    final_norm: Callable[..., Module]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        width = self.features
        pair, embed = {"pair": 2, "embed": width}, {"embed": width}
        maker.child("hidden_norm", self.hidden_norm, features=width)
        maker.child("embedding_norm", self.embedding_norm, features=width)
        maker.child("projection", self.projection, inputs=pair, outputs=embed)
        maker.child("stack", self.stack, features=width)
        maker.child("final_norm", self.final_norm, features=width)

    @with_parts
    def __call__(
        self, parts, h_BTD: jax.Array, e_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what the next module starts from, and what the head takes."""
        at = context.at
        h_BTD = parts.hidden_norm(h_BTD, at("hidden_norm"))
        e_BTD = parts.embedding_norm(e_BTD, at("embedding_norm"))
        pair_BT2D = jnp.stack([h_BTD, e_BTD], axis=2)
        h_BTD = parts.stack(parts.projection(pair_BT2D, at("projection")), at("stack"))
        return h_BTD, parts.final_norm(h_BTD, at("final_norm"))
