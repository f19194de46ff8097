"""The whole language model: tokens to hidden vectors, and the weights for logits."""

from collections.abc import Callable

import jax

from maxfdl.layers.checks import check_transformer
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.decoder import Decoder
from maxfdl.layers.embedding import Embedding, PositionEmbedding
from maxfdl.layers.head import Head, TiedHead
from maxfdl.layers.later_token import LaterToken
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.parameter import DType
from maxfdl.ops.later import later
from maxfdl.ops.unembedding import Unembedding


class Transformer(Layer):
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

    def make(self, maker: Maker):
        width = dict(features=self.features)
        sizes = dict(vocab_size=self.vocab_size, dtype=self.dtype, **width)
        maker.child("embedding", self.embedding, **sizes)
        maker.child("position_embedding", self.position_embedding, **width)
        maker.child("decoder", self.decoder, **width)
        maker.child("final_norm", self.final_norm, **width)
        maker.child("head", self.head, **sizes)
        modules = [self.later_token] * self.later_tokens if self.later_token else []
        maker.children("later", modules, **width)

    @with_parts
    def __call__(
        self, parts, tokens_BT: jax.Array, context: Context
    ) -> tuple[jax.Array, Unembedding, tuple[jax.Array, ...]]:
        """Returns the hidden vectors [B, T, D] after the last norm, the head, and the
        hidden vectors that predict later tokens, one array for each."""
        at = context.at
        x_BTD = parts.embedding(tokens_BT, at("embedding"))
        x_BTD = apply_if(parts.position_embedding, x_BTD, at("position_embedding"))
        h_BTD = parts.decoder(x_BTD, at("decoder"))
        x_BTD = parts.final_norm(h_BTD, at("final_norm"))
        x_BTD = context.constrain(x_BTD, "batch", "sequence", "embed")
        unembedding = parts.head(parts.embedding.stored(), at("head"))
        ahead = []
        for k, module in enumerate([] if context.caches else parts.later, 1):
            e_BTD = parts.embedding(later(tokens_BT, k), at("embedding"))
            told = at(f"later_{k - 1}").where_later(k)
            h_BTD, ahead_BTD = module(h_BTD, e_BTD, told)
            ahead.append(ahead_BTD)
        return x_BTD, unembedding, tuple(ahead)
