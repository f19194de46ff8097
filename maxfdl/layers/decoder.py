"""The residual layers of a decoder, and the decoder as a list of stacks.

Letters: B rows, T tokens, D residual width.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax

from maxfdl.layers.checks import check_decoder
from maxfdl.layers.context import Context, apply_if
from maxfdl.layers.dropout import Dropout
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.stack import Stack
from maxfdl.markers import FromParent
from maxfdl.ops.product import Depth


class DecoderLayer(Layer):
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

    def make(self, maker: Maker):
        width = self.features
        maker.child("attention_norm", self.attention_norm, features=width)
        maker.child("attention", self.attention, features=width)
        maker.child("attention_post_norm", self.attention_post_norm, features=width)
        maker.child("mlp_norm", self.mlp_norm, features=width)
        maker.child("mlp", self.mlp, features=width)
        maker.child("mlp_post_norm", self.mlp_post_norm, features=width)
        maker.child("dropout", self.dropout)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        h_BTD = apply_if(parts.attention_norm, x_BTD, at("attention_norm"))
        h_BTD = parts.attention(h_BTD, at("attention"))
        h_BTD = apply_if(parts.attention_post_norm, h_BTD, at("attention_post_norm"))
        x_BTD = x_BTD + parts.dropout(h_BTD, at("attention").at("dropout"))
        x_BTD = context.constrain(x_BTD, "batch", "residual", "embed")
        h_BTD = apply_if(parts.mlp_norm, x_BTD, at("mlp_norm"))
        h_BTD = parts.mlp(h_BTD, at("mlp"))
        h_BTD = apply_if(parts.mlp_post_norm, h_BTD, at("mlp_post_norm"))
        x_BTD = x_BTD + parts.dropout(h_BTD, at("mlp").at("dropout"))
        return context.constrain(x_BTD, "batch", "residual", "embed")


class ParallelDecoderLayer(Layer):
    """`x += attention(norm(x)) + mlp(norm(x))`: one norm for both branches.

    Wang & Komatsuzaki 2021 (GPT-J), and Chowdhery et al. 2022.
    """

    norm: Callable[..., Module]
    attention: Callable[..., Module]
    mlp: Callable[..., Module]
    dropout: Callable[..., Dropout]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        for name in ("norm", "attention", "mlp"):
            maker.child(name, getattr(self, name), features=self.features)
        maker.child("dropout", self.dropout)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        at = context.at
        h_BTD = parts.norm(x_BTD, at("norm"))
        mixed_BTD = parts.attention(h_BTD, at("attention"))
        mixed_BTD = parts.dropout(mixed_BTD, at("attention").at("dropout"))
        h_BTD = parts.mlp(h_BTD, at("mlp"))
        h_BTD = parts.dropout(h_BTD, at("mlp").at("dropout"))
        x_BTD = x_BTD + mixed_BTD + h_BTD
        return context.constrain(x_BTD, "batch", "residual", "embed")


class Decoder(Layer):
    """Stacks of layers, one after the other: a dense prefix, then experts, say."""

    check_config = staticmethod(check_decoder)

    stacks: Sequence[Callable[..., Stack]]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.children("stacks", self.stacks, features=self.features)

    @with_parts
    def __call__(self, parts, x_BTD: jax.Array, context: Context) -> jax.Array:
        ends = list(itertools.accumulate(stack.num_layers for stack in parts.stacks))
        for i, stack in enumerate(parts.stacks):
            layers = range(ends[i] - stack.num_layers, ends[i])
            depth = Depth(layers, total=ends[-1])
            x_BTD = stack(x_BTD, context.at(f"stacks_{i}").at_depth(depth))
        return x_BTD
