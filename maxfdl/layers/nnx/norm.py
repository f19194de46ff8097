"""Normalisation layers, see `maxfdl.layers.norm`."""

from maxfdl.layers import norm
from maxfdl.layers.nnx.module import Module


class RMSNorm(norm.RMSNorm, Module): ...


class ZeroCentredRMSNorm(norm.ZeroCentredRMSNorm, Module): ...


class UnitRMSNorm(norm.UnitRMSNorm, Module): ...


class LayerNorm(norm.LayerNorm, Module): ...


class ZeroCentredLayerNorm(norm.ZeroCentredLayerNorm, Module): ...


class PerHead(norm.PerHead, Module): ...


class AcrossHeads(norm.AcrossHeads, Module): ...
