"""Convolutions over the tokens of a row, see `maxfdl.layers.convolution`."""

from maxfdl.layers import convolution
from maxfdl.layers.nnx.module import Module


class CausalConvolution(convolution.CausalConvolution, Module): ...
