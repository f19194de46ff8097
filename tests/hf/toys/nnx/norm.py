"""A norm that is none, to see what the last layer gives."""

from typing import Annotated

from flax import nnx

from maxfdl.layers.nnx.module import Module
from maxfdl.markers import FromParent


class Through(Module):
    def __init__(self, *, features: Annotated[int, FromParent], rngs: nnx.Rngs):
        pass

    def __call__(self, x, context):
        return x
