"""Linear projections, see `maxfdl.layers.linear`."""

from maxfdl.layers import linear
from maxfdl.layers.nnx.module import Module


class Linear(linear.Linear, Module): ...


class LowRankLinear(linear.LowRankLinear, Module): ...
