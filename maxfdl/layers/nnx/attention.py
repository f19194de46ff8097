"""Self-attention layers, see `maxfdl.layers.attention`."""

from maxfdl.layers import attention
from maxfdl.layers.nnx.module import Module


class Sinks(attention.Sinks, Module): ...


class Attention(attention.Attention, Module): ...
