"""The whole language model, see `maxfdl.layers.transformer`."""

from maxfdl.layers import transformer
from maxfdl.layers.linen.module import Module


class Transformer(transformer.Transformer, Module, kw_only=True): ...
