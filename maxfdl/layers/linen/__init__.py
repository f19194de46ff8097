"""The Linen family of layers: `maxfdl.layers.nnx` is its twin."""

from maxfdl.layers.linen.attention import Attention
from maxfdl.layers.linen.decoder import Decoder, DecoderLayer
from maxfdl.layers.linen.dropout import Dropout
from maxfdl.layers.linen.embedding import Embedding
from maxfdl.layers.linen.head import Head, TiedHead
from maxfdl.layers.linen.linear import Linear
from maxfdl.layers.linen.mlp import GatedMlp
from maxfdl.layers.linen.norm import RMSNorm
from maxfdl.layers.linen.stack import Stack
from maxfdl.layers.linen.transformer import Transformer

__all__ = [
    "Attention",
    "Decoder",
    "DecoderLayer",
    "Dropout",
    "Embedding",
    "GatedMlp",
    "Head",
    "Linear",
    "RMSNorm",
    "Stack",
    "TiedHead",
    "Transformer",
]
