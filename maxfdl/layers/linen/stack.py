"""A cycle of layers, repeated, see `maxfdl.layers.stack`."""

from maxfdl.layers import stack
from maxfdl.layers.linen.module import Module


class Stack(stack.Stack, Module, kw_only=True): ...
