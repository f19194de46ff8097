"""The whole language model: tokens to hidden vectors, and the weights for logits."""

from collections.abc import Callable

import jax
from flax import nnx

from maxfdl.layers.checks import check_transformer
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.nnx.decoder import Decoder
from maxfdl.layers.nnx.embedding import Embedding, PositionEmbedding
from maxfdl.layers.nnx.head import Head, TiedHead
from maxfdl.layers.nnx.later_token import LaterToken
from maxfdl.layers.nnx.module import Module
from maxfdl.layers.parameter import DType
from maxfdl.ops.later import later
from maxfdl.ops.unembedding import Unembedding


class Transformer(Module):
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

    def __init__(
        self,
        *,
        embedding: Callable[..., Embedding],
        position_embedding: Callable[..., PositionEmbedding] | None = None,
        decoder: Callable[..., Decoder],
        final_norm: Callable[..., Module],
        head: Callable[..., Head | TiedHead],
        later_token: Callable[..., LaterToken] | None = None,
        later_tokens: int = 0,
        features: int,
        vocab_size: int,
        dtype: DType = "float32",
        param_dtype: DType = "float32",
        rngs: nnx.Rngs,
    ):
        self.vocab_size = vocab_size
        self.later_tokens = later_tokens
        self.param_dtype: DType = param_dtype
        widths = dict(features=features, rngs=rngs)
        self.embedding = embedding(vocab_size=vocab_size, dtype=dtype, **widths)
        self.position_embedding = position_embedding and position_embedding(**widths)
        self.decoder = decoder(**widths)
        self.final_norm = final_norm(**widths)
        self.head = head(vocab_size=vocab_size, dtype=dtype, **widths)
        makers = [later_token] * later_tokens if later_token else []
        self.later = nnx.List([make(**widths) for make in makers])

    def __call__(
        self, tokens_BT: jax.Array, context: Context
    ) -> tuple[jax.Array, Unembedding, tuple[jax.Array, ...]]:
        """Returns the hidden vectors [B, T, D] after the last norm, the head, and the
        hidden vectors that predict later tokens, one array for each."""
        at = context.at
        x_BTD = self.embedding(tokens_BT, at("embedding"))
        x_BTD = apply_if(self.position_embedding, x_BTD, at("position_embedding"))
        h_BTD = self.decoder(x_BTD, at("decoder"))
        x_BTD = self.final_norm(h_BTD, at("final_norm"))
        unembedding = self.head(self.embedding.stored(), at("head"))
        ahead = []
        for k, module in enumerate([] if context.caches else self.later, 1):
            e_BTD = self.embedding(later(tokens_BT, k), at("embedding"))
            told = at(f"later_{k - 1}").where_later(k)
            h_BTD, ahead_BTD = module(h_BTD, e_BTD, told)
            ahead.append(ahead_BTD)
        return x_BTD, unembedding, tuple(ahead)
