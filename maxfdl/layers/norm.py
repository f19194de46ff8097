"""Normalisation layers."""

from collections.abc import Callable
from typing import Annotated

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Constant
from maxfdl.ops.norm import (
    layer_norm,
    rms_norm,
    zero_centred_layer_norm,
    zero_centred_rms_norm,
)


class RMSNorm(Layer):
    """Root-mean-square norm with a learned scale, see `ops.norm.rms_norm`."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.parameter("scale", norm_scale(self.features, 1.0))

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        return rms_norm(x, parts.scale.ready(context), self.epsilon)


class ZeroCentredRMSNorm(Layer):
    """Root-mean-square norm whose learned `offset` is added to a scale of 1."""

    epsilon: float = 1e-6
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.parameter("offset", norm_scale(self.features, 0.0))

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        return zero_centred_rms_norm(x, parts.offset.ready(context), self.epsilon)


class UnitRMSNorm(Layer):
    """Root-mean-square norm without parameters."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return rms_norm(x, None, self.epsilon)


class LayerNorm(Layer):
    """Mean and variance norm with a learned scale, see `ops.norm.layer_norm`.

    Args:
      use_bias: Whether to add a learned bias, which starts at 0.
    """

    epsilon: float = 1e-5
    use_bias: bool = True
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.parameter("scale", norm_scale(self.features, 1.0))
        maker.parameter("bias", norm_bias(self.features) if self.use_bias else None)

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        bias = None if parts.bias is None else parts.bias.ready(context)
        return layer_norm(x, parts.scale.ready(context), bias, self.epsilon)


class ZeroCentredLayerNorm(Layer):
    """Mean and variance norm with a bias, whose `offset` is added to a scale of 1."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.parameter("offset", norm_scale(self.features, 0.0))
        maker.parameter("bias", norm_bias(self.features))

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        offset, bias = parts.offset.ready(context), parts.bias.ready(context)
        return zero_centred_layer_norm(x, offset, bias, self.epsilon)


class PerHead(Layer):
    """Normalises each head by itself, all heads with the same parameters."""

    norm: Callable[..., Module]
    heads: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.child("norm", self.norm, features=self.features)

    @with_parts
    def __call__(self, parts, x_BTHK: jax.Array, context: Context) -> jax.Array:
        return parts.norm(x_BTHK, context.at("norm"))


class AcrossHeads(Layer):
    """Normalises all heads of a token together."""

    norm: Callable[..., Module]
    heads: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.child("norm", self.norm, features=self.heads * self.features)

    @with_parts
    def __call__(self, parts, x_BTHK: jax.Array, context: Context) -> jax.Array:
        x = x_BTHK.reshape(*x_BTHK.shape[:-2], -1)
        return parts.norm(x, context.at("norm")).reshape(x_BTHK.shape)


def norm_scale(features: int, start: float) -> Parameter:
    """Returns the declaration of a norm's scale, all of which starts as one number."""
    return Parameter((features,), ("norm",), Constant(start), "scale")


def norm_bias(features: int) -> Parameter:
    """Returns the declaration of a norm's bias, which starts at 0."""
    return Parameter((features,), ("norm",), Constant(0.0), "bias")
