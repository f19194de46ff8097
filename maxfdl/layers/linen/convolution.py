"""Convolutions over the tokens of a row, see `maxfdl.layers.convolution`."""

from maxfdl.layers import convolution
from maxfdl.layers.linen.module import Module


class CausalConvolution(convolution.CausalConvolution, Module, kw_only=True): ...
