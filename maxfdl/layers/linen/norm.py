"""Normalisation layers, see `maxfdl.layers.norm`."""

from maxfdl.layers import norm
from maxfdl.layers.linen.module import Module


class RMSNorm(norm.RMSNorm, Module, kw_only=True):
    pass


class ZeroCentredRMSNorm(norm.ZeroCentredRMSNorm, Module, kw_only=True):
    pass


class UnitRMSNorm(norm.UnitRMSNorm, Module, kw_only=True):
    pass


class LayerNorm(norm.LayerNorm, Module, kw_only=True):
    pass


class PerHead(norm.PerHead, Module, kw_only=True):
    pass


class AcrossHeads(norm.AcrossHeads, Module, kw_only=True):
    pass
