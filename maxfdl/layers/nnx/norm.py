"""Normalisation layers."""

from collections.abc import Callable
from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Constant
from maxfdl.ops.norm import layer_norm, rms_norm, zero_centred_rms_norm


class RMSNorm(Module):
    """Root-mean-square norm with a learned scale, see `ops.norm.rms_norm`."""

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon
        self.scale = param(
            Parameter((features,), ("norm",), Constant(1.0), "scale"), rngs
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        scale = context.weight(self.scale[...], ("norm",), dtype=self.scale[...].dtype)
        return rms_norm(x, scale, self.epsilon)


class ZeroCentredRMSNorm(Module):
    """Root-mean-square norm whose learned `offset` is added to a scale of 1."""

    def __init__(
        self,
        *,
        epsilon: float = 1e-6,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon
        self.offset = param(
            Parameter((features,), ("norm",), Constant(0.0), "scale"), rngs
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        dtype = self.offset[...].dtype
        offset = context.weight(self.offset[...], ("norm",), dtype=dtype)
        return zero_centred_rms_norm(x, offset, self.epsilon)


class UnitRMSNorm(Module):
    """Root-mean-square norm without parameters."""

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return rms_norm(x, None, self.epsilon)


class LayerNorm(Module):
    """Mean and variance norm with a learned scale, see `ops.norm.layer_norm`.

    Args:
      use_bias: Whether to add a learned bias, which starts at 0.
    """

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        use_bias: bool = True,
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.epsilon = epsilon
        self.scale = param(
            Parameter((features,), ("norm",), Constant(1.0), "scale"), rngs
        )
        bias = Parameter((features,), ("norm",), Constant(0.0), "bias")
        self.bias = param(bias, rngs) if use_bias else None

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        dtype = self.scale[...].dtype
        scale = context.weight(self.scale[...], ("norm",), dtype=dtype)
        if self.bias is None:
            return layer_norm(x, scale, None, self.epsilon)
        bias = context.weight(self.bias[...], ("norm",), dtype=dtype)
        return layer_norm(x, scale, bias, self.epsilon)


class PerHead(Module):
    """Normalises each head by itself, all heads with the same parameters."""

    def __init__(
        self,
        *,
        norm: Callable[..., Module],
        heads: Annotated[int, FromParent],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.norm = norm(features=features, rngs=rngs)

    def __call__(self, x_BTHK: jax.Array, context: Context) -> jax.Array:
        return self.norm(x_BTHK, context.at("norm"))


class AcrossHeads(Module):
    """Normalises all heads of a token together."""

    def __init__(
        self,
        *,
        norm: Callable[..., Module],
        heads: Annotated[int, FromParent],
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.norm = norm(features=heads * features, rngs=rngs)

    def __call__(self, x_BTHK: jax.Array, context: Context) -> jax.Array:
        x = x_BTHK.reshape(*x_BTHK.shape[:-2], -1)
        return self.norm(x, context.at("norm")).reshape(x_BTHK.shape)
