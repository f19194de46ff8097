"""The residual layer of a decoder, and the decoder as a list of stacks.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import linen as nn

from maxfdl.layers.context import Context
from maxfdl.layers.linen.attention import Attention
from maxfdl.layers.linen.dropout import Dropout
from maxfdl.layers.linen.mlp import GatedMlp
from maxfdl.layers.linen.module import Module
from maxfdl.layers.linen.norm import RMSNorm
from maxfdl.layers.linen.stack import Stack
from maxfdl.markers import FromParent


class DecoderLayer(Module, kw_only=True):
    """`x += attention(norm(x)); x += mlp(norm(x))`: a pre-norm transformer layer.

    Dropout applies to what each branch adds to the residual.
    """

    attention_norm: Callable[..., RMSNorm]
    attention: Callable[..., Attention]
    mlp_norm: Callable[..., RMSNorm]
    mlp: Callable[..., GatedMlp]
    dropout: Callable[..., Dropout]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        width = self.features
        attention_norm = self.attention_norm(features=width, name="attention_norm")
        attention = self.attention(features=width, name="attention")
        mlp_norm = self.mlp_norm(features=width, name="mlp_norm")
        mlp = self.mlp(features=width, name="mlp")
        dropout = self.dropout(name="dropout")

        at = context.at
        h_BTD = attention_norm(x_BTD, at("attention_norm"))
        h_BTD = attention(h_BTD, at("attention"))
        x_BTD = x_BTD + dropout(h_BTD, at("attention").at("dropout"))
        h_BTD = mlp_norm(x_BTD, at("mlp_norm"))
        h_BTD = mlp(h_BTD, at("mlp"))
        x_BTD = x_BTD + dropout(h_BTD, at("mlp").at("dropout"))
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class Decoder(Module, kw_only=True):
    """Stacks of layers, one after the other: a dense prefix, then experts, say."""

    stacks: Sequence[Callable[..., Stack]]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        for i, stack in enumerate(self.stacks):
            name = f"stacks_{i}"
            x_BTD = stack(features=self.features, name=name)(x_BTD, context.at(name))
        return x_BTD
