"""Position-wise feed-forward layers, see `maxfdl.layers.mlp`."""

from maxfdl.layers import mlp
from maxfdl.layers.nnx.module import Module


class GatedMlp(mlp.GatedMlp, Module): ...


class Mlp(mlp.Mlp, Module): ...
