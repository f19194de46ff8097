"""Normalisation layers."""

from typing import Annotated

import jax

from maxfdl.layers.context import Context
from maxfdl.layers.linen.module import Module, param
from maxfdl.layers.parameter import Parameter
from maxfdl.markers import FromParent
from maxfdl.ops.initializers import Constant
from maxfdl.ops.norm import rms_norm


class RMSNorm(Module, kw_only=True):
    """Root-mean-square norm with a learned scale, see `ops.norm.rms_norm`."""

    epsilon: float = 1e-5
    features: Annotated[int, FromParent]

    def setup(self):
        self.scale = param(
            self,
            "scale",
            Parameter((self.features,), ("norm",), Constant(1.0), "scale"),
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        scale = context.weight(self.scale, ("norm",), dtype=self.scale.dtype)
        return rms_norm(x, scale, self.epsilon)
