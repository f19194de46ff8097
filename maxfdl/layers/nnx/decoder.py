"""The residual layers of a decoder, see `maxfdl.layers.decoder`."""

from maxfdl.layers import decoder
from maxfdl.layers.nnx.module import Module


class DecoderLayer(decoder.DecoderLayer, Module): ...


class ParallelDecoderLayer(decoder.ParallelDecoderLayer, Module): ...


class Decoder(decoder.Decoder, Module): ...
