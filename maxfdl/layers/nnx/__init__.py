"""The NNX family of layers: `maxfdl.layers.linen` is its twin."""

from maxfdl.layers.nnx.attention import Attention
from maxfdl.layers.nnx.decoder import Decoder, DecoderLayer
from maxfdl.layers.nnx.dropout import Dropout
from maxfdl.layers.nnx.embedding import Embedding
from maxfdl.layers.nnx.head import Head, TiedHead
from maxfdl.layers.nnx.linear import Linear
from maxfdl.layers.nnx.mlp import GatedMlp
from maxfdl.layers.nnx.norm import RMSNorm
from maxfdl.layers.nnx.stack import Stack
from maxfdl.layers.nnx.transformer import Transformer

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
