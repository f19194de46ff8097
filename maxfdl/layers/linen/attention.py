"""Self-attention layers, see `maxfdl.layers.attention`."""

from maxfdl.layers import attention
from maxfdl.layers.linen.module import Module


class AttentionSinks(attention.AttentionSinks, Module, kw_only=True): ...


class Attention(attention.Attention, Module, kw_only=True): ...
