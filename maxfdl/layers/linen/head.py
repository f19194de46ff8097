"""Heads, see `maxfdl.layers.head`."""

from maxfdl.layers import head
from maxfdl.layers.linen.module import Module


class Head(head.Head, Module, kw_only=True): ...


class TiedHead(head.TiedHead, Module, kw_only=True): ...
