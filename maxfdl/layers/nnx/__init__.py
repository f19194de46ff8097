"""The NNX family of layers: `maxfdl.layers.linen` is its twin."""

from maxfdl.layers.nnx.attention import Attention, AttentionSinks
from maxfdl.layers.nnx.convolution import CausalConvolution
from maxfdl.layers.nnx.decoder import Decoder, DecoderLayer, ParallelDecoderLayer
from maxfdl.layers.nnx.delta import GatedDeltaNet, GatedRMSNorm
from maxfdl.layers.nnx.dropout import Dropout
from maxfdl.layers.nnx.embedding import Embedding, PositionEmbedding, ScaledEmbedding
from maxfdl.layers.nnx.head import Head, TiedHead
from maxfdl.layers.nnx.latent import LatentAttention
from maxfdl.layers.nnx.later_token import LaterToken
from maxfdl.layers.nnx.linear import Linear, LowRankLinear
from maxfdl.layers.nnx.mlp import GatedMlp, Mlp
from maxfdl.layers.nnx.moe import Experts, GroupedLinear, MoE, Router
from maxfdl.layers.nnx.norm import (
    AcrossHeads,
    LayerNorm,
    PerHead,
    RMSNorm,
    UnitRMSNorm,
    ZeroCentredLayerNorm,
    ZeroCentredRMSNorm,
)
from maxfdl.layers.nnx.stack import Stack
from maxfdl.layers.nnx.transformer import Transformer

__all__ = [
    "AcrossHeads",
    "Attention",
    "AttentionSinks",
    "CausalConvolution",
    "Decoder",
    "DecoderLayer",
    "Dropout",
    "Embedding",
    "Experts",
    "GatedDeltaNet",
    "GatedMlp",
    "GatedRMSNorm",
    "GroupedLinear",
    "Head",
    "LatentAttention",
    "LaterToken",
    "LayerNorm",
    "Linear",
    "LowRankLinear",
    "Mlp",
    "MoE",
    "ParallelDecoderLayer",
    "PerHead",
    "PositionEmbedding",
    "RMSNorm",
    "Router",
    "ScaledEmbedding",
    "Stack",
    "TiedHead",
    "Transformer",
    "UnitRMSNorm",
    "ZeroCentredLayerNorm",
    "ZeroCentredRMSNorm",
]
