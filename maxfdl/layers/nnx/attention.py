"""Self-attention layers, see `maxfdl.layers.attention`."""

from maxfdl.layers import attention
from maxfdl.layers.nnx.module import Module


class AttentionSinks(attention.AttentionSinks, Module): ...


class Attention(attention.Attention, Module): ...
