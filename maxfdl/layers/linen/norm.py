"""Normalisation layers."""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import linen as nn

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Constant
from maxfdl.ops.norm import layer_norm, rms_norm, zero_centred_rms_norm


class RMSNorm(Module, kw_only=True):
    """Root-mean-square norm with a learned scale, see `ops.norm.rms_norm`."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def setup(self):
        scale = Parameter((self.features,), ("norm",), Constant(1.0), "scale")
        self.scale = param(self, "scale", scale)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        scale = context.weight(self.scale, ("norm",), dtype=self.scale.dtype)
        return rms_norm(x, scale, self.epsilon)


class ZeroCentredRMSNorm(Module, kw_only=True):
    """Root-mean-square norm whose learned `offset` is added to a scale of 1."""

    epsilon: float = 1e-6
    features: Annotated[int, FromParent]

    def setup(self):
        offset = Parameter((self.features,), ("norm",), Constant(0.0), "scale")
        self.offset = param(self, "offset", offset)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        offset = context.weight(self.offset, ("norm",), dtype=self.offset.dtype)
        return zero_centred_rms_norm(x, offset, self.epsilon)


class UnitRMSNorm(Module, kw_only=True):
    """Root-mean-square norm without parameters."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return rms_norm(x, None, self.epsilon)


class LayerNorm(Module, kw_only=True):
    """Mean and variance norm with a learned scale, see `ops.norm.layer_norm`.

    Args:
      use_bias: Whether to add a learned bias, which starts at 0.
    """

    epsilon: float = 1e-5
    use_bias: bool = True
    features: Annotated[int, FromParent]

    def setup(self):
        scale = Parameter((self.features,), ("norm",), Constant(1.0), "scale")
        self.scale = param(self, "scale", scale)
        bias = Parameter((self.features,), ("norm",), Constant(0.0), "bias")
        self.bias = param(self, "bias", bias) if self.use_bias else None

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        dtype = self.scale.dtype
        scale = context.weight(self.scale, ("norm",), dtype=dtype)
        if self.bias is None:
            return layer_norm(x, scale, None, self.epsilon)
        bias = context.weight(self.bias, ("norm",), dtype=dtype)
        return layer_norm(x, scale, bias, self.epsilon)


class PerHead(Module, kw_only=True):
    """Normalises each head by itself, all heads with the same parameters."""

    norm: Callable[..., Module]
    heads: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTHK: jax.Array, context: Context) -> jax.Array:
        norm = self.norm(features=self.features, name="norm")
        return norm(x_BTHK, context.at("norm"))


class AcrossHeads(Module, kw_only=True):
    """Normalises all heads of a token together."""

    norm: Callable[..., Module]
    heads: Annotated[int, FromParent]
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x_BTHK: jax.Array, context: Context) -> jax.Array:
        norm = self.norm(features=self.heads * self.features, name="norm")
        x = x_BTHK.reshape(*x_BTHK.shape[:-2], -1)
        return norm(x, context.at("norm")).reshape(x_BTHK.shape)
