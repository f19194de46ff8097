"""The whole language model: tokens to hidden vectors, and the weights for logits."""

from collections.abc import Callable

import jax
from flax import linen as nn

from maxfdl.layers.checks import check_transformer
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.linen.decoder import Decoder
from maxfdl.layers.linen.embedding import Embedding, PositionEmbedding
from maxfdl.layers.linen.head import Head, TiedHead
from maxfdl.layers.linen.later_token import LaterToken
from maxfdl.layers.linen.module import Module
from maxfdl.layers.parameter import DType
from maxfdl.ops.later import later
from maxfdl.ops.unembedding import Unembedding


class Transformer(Module, kw_only=True):
    """Embedding, decoder, final norm and head.

    Args:
      position_embedding: Vectors to add by position; None: attention tells positions.
      later_token: A module that predicts one token further, see `LaterToken`.
      later_tokens: How many of them, one after the other. Calls that cache do not run
        them.
      features: D, width of the residual stream, handed down to every layer.
      vocab_size: V, number of tokens, a multiple of what shards it.
      dtype: Type of activations and matrix products.
      param_dtype: Type that parameters are stored in.
    """

    check_config = staticmethod(check_transformer)

    embedding: Callable[..., Embedding]
    position_embedding: Callable[..., PositionEmbedding] | None = None
    decoder: Callable[..., Decoder]
    final_norm: Callable[..., Module]
    head: Callable[..., Head | TiedHead]
    later_token: Callable[..., LaterToken] | None = None
    later_tokens: int = 0
    features: int
    vocab_size: int
    dtype: DType = "float32"
    param_dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, context: Context
    ) -> tuple[jax.Array, Unembedding, tuple[jax.Array, ...]]:
        """Returns the hidden vectors [B, T, D] after the last norm, the head, and the
        hidden vectors that predict later tokens, one array for each."""
        sizes = dict(features=self.features, vocab_size=self.vocab_size)
        embedding = self.embedding(dtype=self.dtype, name="embedding", **sizes)
        position_embedding = self.position_embedding and self.position_embedding(
            features=self.features, name="position_embedding"
        )
        decoder = self.decoder(features=self.features, name="decoder")
        final_norm = self.final_norm(features=self.features, name="final_norm")
        head = self.head(dtype=self.dtype, name="head", **sizes)
        makers = [self.later_token] * self.later_tokens if self.later_token else []
        modules = [
            make(features=self.features, name=f"later_{k}")
            for k, make in enumerate(makers)
        ]

        at = context.at
        x_BTD = embedding(tokens_BT, at("embedding"))
        x_BTD = apply_if(position_embedding, x_BTD, at("position_embedding"))
        h_BTD = decoder(x_BTD, at("decoder"))
        x_BTD = final_norm(h_BTD, at("final_norm"))
        unembedding = head(embedding.stored(), at("head"))
        ahead = []
        for k, module in enumerate([] if context.caches else modules, 1):
            e_BTD = embedding(later(tokens_BT, k), at("embedding"))
            told = at(f"later_{k - 1}").where_later(k)
            h_BTD, ahead_BTD = module(h_BTD, e_BTD, told)
            ahead.append(ahead_BTD)
        return x_BTD, unembedding, tuple(ahead)
