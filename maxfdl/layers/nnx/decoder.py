"""The residual layers of a decoder, and the decoder as a list of stacks.

Letters: B rows, T tokens, D residual width.
"""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.checks import check_decoder
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.nnx.dropout import Dropout
from maxfdl.layers.nnx.module import Module
from maxfdl.layers.nnx.stack import Stack
from maxfdl.markers import FromParent


class DecoderLayer(Module):
    """`x += attention(norm(x)); x += mlp(norm(x))`, with a norm after each, too.

    A pre-norm layer has no norms after, a post-norm layer none before. Dropout applies
    to what each branch adds to the residual.
    """

    def __init__(
        self,
        *,
        attention_norm: Callable[..., Module] | None = None,
        attention: Callable[..., Module],
        attention_post_norm: Callable[..., Module] | None = None,
        mlp_norm: Callable[..., Module] | None = None,
        mlp: Callable[..., Module],
        mlp_post_norm: Callable[..., Module] | None = None,
        dropout: Callable[..., Dropout],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        widths = {"features": features, "rngs": rngs}
        self.attention_norm = attention_norm and attention_norm(**widths)
        self.attention = attention(**widths)
        self.attention_post_norm = attention_post_norm and attention_post_norm(**widths)
        self.mlp_norm = mlp_norm and mlp_norm(**widths)
        self.mlp = mlp(**widths)
        self.mlp_post_norm = mlp_post_norm and mlp_post_norm(**widths)
        self.dropout = dropout(rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        h_BTD = apply_if(self.attention_norm, x_BTD, at("attention_norm"))
        h_BTD = self.attention(h_BTD, at("attention"))
        h_BTD = apply_if(self.attention_post_norm, h_BTD, at("attention_post_norm"))
        x_BTD = x_BTD + self.dropout(h_BTD, at("attention").at("dropout"))
        h_BTD = apply_if(self.mlp_norm, x_BTD, at("mlp_norm"))
        h_BTD = self.mlp(h_BTD, at("mlp"))
        h_BTD = apply_if(self.mlp_post_norm, h_BTD, at("mlp_post_norm"))
        x_BTD = x_BTD + self.dropout(h_BTD, at("mlp").at("dropout"))
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class ParallelDecoderLayer(Module):
    """`x += attention(norm(x)) + mlp(norm(x))`: one norm for both branches.

    Wang & Komatsuzaki 2021 (GPT-J), and Chowdhery et al. 2022.
    """

    def __init__(
        self,
        *,
        norm: Callable[..., Module],
        attention: Callable[..., Module],
        mlp: Callable[..., Module],
        dropout: Callable[..., Dropout],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.norm = norm(features=features, rngs=rngs)
        self.attention = attention(features=features, rngs=rngs)
        self.mlp = mlp(features=features, rngs=rngs)
        self.dropout = dropout(rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        h_BTD = self.norm(x_BTD, at("norm"))
        mixed_BTD = self.attention(h_BTD, at("attention"))
        mixed_BTD = self.dropout(mixed_BTD, at("attention").at("dropout"))
        h_BTD = self.mlp(h_BTD, at("mlp"))
        h_BTD = self.dropout(h_BTD, at("mlp").at("dropout"))
        x_BTD = x_BTD + mixed_BTD + h_BTD
        return context.constrain(x_BTD, "batch", "sequence", "embed")


class Decoder(Module):
    """Stacks of layers, one after the other: a dense prefix, then experts, say."""

    check_config = staticmethod(check_decoder)

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
