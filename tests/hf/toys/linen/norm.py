"""A norm that is none, to see what the last layer gives."""

from typing import Annotated

from maxfdl.layers.linen.module import Module
from maxfdl.markers import FromParent


class Through(Module):
    features: Annotated[int, FromParent]

    def __call__(self, x, context):
        return x
