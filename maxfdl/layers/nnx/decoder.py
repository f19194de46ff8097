"""The residual layer of a decoder, and the decoder as a list of stacks.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.attention import Attention
from maxfdl.layers.nnx.dropout import Dropout
from maxfdl.layers.nnx.mlp import GatedMlp
from maxfdl.layers.nnx.module import Module
from maxfdl.layers.nnx.norm import RMSNorm
from maxfdl.layers.nnx.stack import Stack
from maxfdl.markers import FromParent


class DecoderLayer(Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`: a pre-norm transformer layer.

    Dropout applies to what each branch adds to the residual.
    """

    def __init__(
        self,
        *,
        attention_norm: Callable[..., RMSNorm],
        attention: Callable[..., Attention],
        mlp_norm: Callable[..., RMSNorm],
        mlp: Callable[..., GatedMlp],
        dropout: Callable[..., Dropout],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.attention_norm = attention_norm(features=features, rngs=rngs)
        self.attention = attention(features=features, rngs=rngs)
        self.mlp_norm = mlp_norm(features=features, rngs=rngs)
        self.mlp = mlp(features=features, rngs=rngs)
        self.dropout = dropout(rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        h_BTD = self.attention_norm(x_BTD, at("attention_norm"))
        h_BTD = self.attention(h_BTD, at("attention"))
        x_BTD = x_BTD + self.dropout(h_BTD, at("attention").at("dropout"))
        h_BTD = self.mlp_norm(x_BTD, at("mlp_norm"))
        h_BTD = self.mlp(h_BTD, at("mlp"))
        x_BTD = x_BTD + self.dropout(h_BTD, at("mlp").at("dropout"))
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class Decoder(Module):
    """Stacks of layers, one after the other: a dense prefix, then experts, say."""

    def __init__(
        self,
        *,
        stacks: Sequence[Callable[..., Stack]],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.stacks = nnx.List(
            [stack(features=features, rngs=rngs) for stack in stacks]
        )

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        for i, stack in enumerate(self.stacks):
            x_BTD = stack(x_BTD, context.at(f"stacks_{i}"))
        return x_BTD
