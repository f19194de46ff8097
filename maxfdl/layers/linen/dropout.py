"""Dropout, see `maxfdl.layers.dropout`."""

from maxfdl.layers import dropout
from maxfdl.layers.linen.module import Module


class Dropout(dropout.Dropout, Module, kw_only=True): ...
