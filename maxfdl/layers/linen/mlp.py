"""Position-wise feed-forward layers, see `maxfdl.layers.mlp`."""

from maxfdl.layers import mlp
from maxfdl.layers.linen.module import Module


class GatedMlp(mlp.GatedMlp, Module, kw_only=True): ...


class Mlp(mlp.Mlp, Module, kw_only=True): ...
