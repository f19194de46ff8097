"""Dropout, see `maxfdl.layers.dropout`."""

from maxfdl.layers import dropout
from maxfdl.layers.nnx.module import Module


class Dropout(dropout.Dropout, Module): ...
