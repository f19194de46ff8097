"""Linear attention layers, whose state does not grow, see `maxfdl.layers.delta`."""

from maxfdl.layers import delta
from maxfdl.layers.nnx.module import Module


class GatedRMSNorm(delta.GatedRMSNorm, Module): ...


class GatedDeltaNet(delta.GatedDeltaNet, Module): ...
