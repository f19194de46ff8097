"""The whole language model: tokens to hidden vectors, and the weights for logits."""

from collections.abc import Callable

import jax
from flax import linen as nn

from maxfdl.layers.context import Context
from maxfdl.layers.linen.decoder import Decoder
from maxfdl.layers.linen.embedding import Embedding
from maxfdl.layers.linen.head import Head, TiedHead
from maxfdl.layers.linen.module import Module
from maxfdl.layers.linen.norm import RMSNorm
from maxfdl.layers.parameter import DType
from maxfdl.ops.unembedding import Unembedding


class Transformer(Module, kw_only=True):
    """Embedding, decoder, final norm and head.

    Args:
      features: D, width of the residual stream, handed down to every layer.
      vocab_size: V, number of tokens, a multiple of what shards it.
      dtype: Type of activations and matrix products.
      param_dtype: Type that parameters are stored in.
    """

    embedding: Callable[..., Embedding]
    decoder: Callable[..., Decoder]
    final_norm: Callable[..., RMSNorm]
    head: Callable[..., Head | TiedHead]
    features: int
    vocab_size: int
    dtype: DType = "float32"
    param_dtype: DType = "float32"

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, context: Context
    ) -> tuple[jax.Array, Unembedding]:
        """Returns the hidden vectors [B, T, D] after the last norm, and the head."""
        sizes = dict(features=self.features, vocab_size=self.vocab_size)
        embedding = self.embedding(dtype=self.dtype, name="embedding", **sizes)
        decoder = self.decoder(features=self.features, name="decoder")
        final_norm = self.final_norm(features=self.features, name="final_norm")
        head = self.head(name="head", **sizes)

        x_BTD = embedding(tokens_BT, context.at("embedding"))
        x_BTD = decoder(x_BTD, context.at("decoder"))
        x_BTD = final_norm(x_BTD, context.at("final_norm"))
        table_VD = embedding.weights(context.at("embedding"))
        return x_BTD, head(table_VD, context.at("head"))
