"""The whole language model, see `maxfdl.layers.transformer`."""

from maxfdl.layers import transformer
from maxfdl.layers.nnx.module import Module


class Transformer(transformer.Transformer, Module): ...
