"""The residual layers of a decoder, see `maxfdl.layers.decoder`."""

from maxfdl.layers import decoder
from maxfdl.layers.linen.module import Module


class DecoderLayer(decoder.DecoderLayer, Module, kw_only=True): ...


class ParallelDecoderLayer(decoder.ParallelDecoderLayer, Module, kw_only=True): ...


class Decoder(decoder.Decoder, Module, kw_only=True): ...
