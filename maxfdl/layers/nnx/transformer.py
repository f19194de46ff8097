"""The whole language model: tokens to hidden vectors, and the weights for logits."""

from collections.abc import Callable

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.decoder import Decoder
from maxfdl.layers.nnx.embedding import Embedding
from maxfdl.layers.nnx.head import Head, TiedHead
from maxfdl.layers.nnx.module import Module
from maxfdl.layers.nnx.norm import RMSNorm
from maxfdl.layers.parameter import DType
from maxfdl.ops.unembedding import Unembedding


class Transformer(Module):
    """Embedding, decoder, final norm and head.

    Args:
      features: D, width of the residual stream, handed down to every layer.
      vocab_size: V, number of tokens, a multiple of what shards it.
      dtype: Type of activations and matrix products.
      param_dtype: Type that parameters are stored in.
    """

    def __init__(
        self,
        *,
        embedding: Callable[..., Embedding],
        decoder: Callable[..., Decoder],
        final_norm: Callable[..., RMSNorm],
        head: Callable[..., Head | TiedHead],
        features: int,
        vocab_size: int,
        dtype: DType = "float32",
        param_dtype: DType = "float32",
        rngs: nnx.Rngs,
    ):
        self.vocab_size = vocab_size
        self.param_dtype: DType = param_dtype
        widths = dict(features=features, rngs=rngs)
        self.embedding = embedding(vocab_size=vocab_size, dtype=dtype, **widths)
        self.decoder = decoder(**widths)
        self.final_norm = final_norm(**widths)
        self.head = head(vocab_size=vocab_size, **widths)

    def __call__(
        self, tokens_BT: jax.Array, context: Context
    ) -> tuple[jax.Array, Unembedding]:
        """Returns the hidden vectors [B, T, D] after the last norm, and the head."""
        x_BTD = self.embedding(tokens_BT, context.at("embedding"))
        x_BTD = self.decoder(x_BTD, context.at("decoder"))
        x_BTD = self.final_norm(x_BTD, context.at("final_norm"))
        table_VD = self.embedding.weights(context.at("embedding"))
        return x_BTD, self.head(table_VD, context.at("head"))
