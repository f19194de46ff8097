"""Normalisation layers, see `maxfdl.layers.norm`."""

from maxfdl.layers import norm
from maxfdl.layers.nnx.module import Module


class RMSNorm(norm.RMSNorm, Module):
    pass


class ZeroCentredRMSNorm(norm.ZeroCentredRMSNorm, Module):
    pass


class UnitRMSNorm(norm.UnitRMSNorm, Module):
    pass


class LayerNorm(norm.LayerNorm, Module):
    pass


class PerHead(norm.PerHead, Module):
    pass


class AcrossHeads(norm.AcrossHeads, Module):
    pass
