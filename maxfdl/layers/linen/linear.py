"""Linear projections, see `maxfdl.layers.linear`."""

from maxfdl.layers import linear
from maxfdl.layers.linen.module import Module


class Linear(linear.Linear, Module, kw_only=True): ...


class LowRankLinear(linear.LowRankLinear, Module, kw_only=True): ...
