"""Normalisation layers, see `maxfdl.layers.norm`."""

from maxfdl.layers import norm
from maxfdl.layers.linen.module import Module


class RMSNorm(norm.RMSNorm, Module, kw_only=True): ...


class ZeroCentredRMSNorm(norm.ZeroCentredRMSNorm, Module, kw_only=True): ...


class UnitRMSNorm(norm.UnitRMSNorm, Module, kw_only=True): ...


class LayerNorm(norm.LayerNorm, Module, kw_only=True): ...


class ZeroCentredLayerNorm(norm.ZeroCentredLayerNorm, Module, kw_only=True): ...


class PerHead(norm.PerHead, Module, kw_only=True): ...


class AcrossHeads(norm.AcrossHeads, Module, kw_only=True): ...
