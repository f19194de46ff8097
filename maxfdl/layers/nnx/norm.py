"""Normalisation layers."""

from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.nnx.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Constant
from maxfdl.ops.norm import rms_norm


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
