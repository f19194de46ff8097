"""The residual layers of a decoder, and the decoder as a list of stacks.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import linen as nn

from maxfdl.layers.checks import check_decoder
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.linen.dropout import Dropout
from maxfdl.layers.linen.module import Module
from maxfdl.layers.linen.stack import Stack
from maxfdl.markers import FromParent


class DecoderLayer(Module, kw_only=True):
    """`x += attention(norm(x)); x += mlp(norm(x))`, with a norm after each, too.

    A pre-norm layer has no norms after, a post-norm layer none before. Dropout applies
    to what each branch adds to the residual.
    """

    attention_norm: Callable[..., Module] | None = None
    attention: Callable[..., Module]
    attention_post_norm: Callable[..., Module] | None = None
    mlp_norm: Callable[..., Module] | None = None
    mlp: Callable[..., Module]
    mlp_post_norm: Callable[..., Module] | None = None
    dropout: Callable[..., Dropout]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        width, at = self.features, context.at
        attention_norm = self.attention_norm and self.attention_norm(
            features=width, name="attention_norm"
        )
        attention = self.attention(features=width, name="attention")
        attention_post_norm = self.attention_post_norm and self.attention_post_norm(
            features=width, name="attention_post_norm"
        )
        mlp_norm = self.mlp_norm and self.mlp_norm(features=width, name="mlp_norm")
        mlp = self.mlp(features=width, name="mlp")
        mlp_post_norm = self.mlp_post_norm and self.mlp_post_norm(
            features=width, name="mlp_post_norm"
        )
        dropout = self.dropout(name="dropout")

        h_BTD = apply_if(attention_norm, x_BTD, at("attention_norm"))
        h_BTD = attention(h_BTD, at("attention"))
        h_BTD = apply_if(attention_post_norm, h_BTD, at("attention_post_norm"))
        x_BTD = x_BTD + dropout(h_BTD, at("attention").at("dropout"))
        h_BTD = apply_if(mlp_norm, x_BTD, at("mlp_norm"))
        h_BTD = mlp(h_BTD, at("mlp"))
        h_BTD = apply_if(mlp_post_norm, h_BTD, at("mlp_post_norm"))
        x_BTD = x_BTD + dropout(h_BTD, at("mlp").at("dropout"))
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class ParallelDecoderLayer(Module, kw_only=True):
    """`x += attention(norm(x)) + mlp(norm(x))`: one norm for both branches.

    Wang & Komatsuzaki 2021 (GPT-J), and Chowdhery et al. 2022.
    """

    norm: Callable[..., Module]
    attention: Callable[..., Module]
    mlp: Callable[..., Module]
    dropout: Callable[..., Dropout]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        width, at = self.features, context.at
        norm = self.norm(features=width, name="norm")
        attention = self.attention(features=width, name="attention")
        mlp = self.mlp(features=width, name="mlp")
        dropout = self.dropout(name="dropout")

        h_BTD = norm(x_BTD, at("norm"))
        mixed_BTD = attention(h_BTD, at("attention"))
        mixed_BTD = dropout(mixed_BTD, at("attention").at("dropout"))
        h_BTD = mlp(h_BTD, at("mlp"))
        h_BTD = dropout(h_BTD, at("mlp").at("dropout"))
        x_BTD = x_BTD + mixed_BTD + h_BTD
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class Decoder(Module, kw_only=True):
    """Stacks of layers, one after the other: a dense prefix, then experts, say."""

    check_config = staticmethod(check_decoder)

    stacks: Sequence[Callable[..., Stack]]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        for i, stack in enumerate(self.stacks):
            name = f"stacks_{i}"
            x_BTD = stack(features=self.features, name=name)(x_BTD, context.at(name))
        return x_BTD
