"""Heads, see `maxfdl.layers.head`."""

from maxfdl.layers import head
from maxfdl.layers.nnx.module import Module


class Head(head.Head, Module): ...


class TiedHead(head.TiedHead, Module): ...
