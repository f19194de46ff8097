"""Linear attention layers, whose state does not grow, see `maxfdl.layers.delta`."""

from maxfdl.layers import delta
from maxfdl.layers.linen.module import Module


class GatedRMSNorm(delta.GatedRMSNorm, Module, kw_only=True): ...


class GatedDeltaNet(delta.GatedDeltaNet, Module, kw_only=True): ...
