"""The Linen family of layers: `maxfdl.layers.nnx` is its twin."""

from maxfdl.layers.linen.attention import Attention, AttentionSinks
from maxfdl.layers.linen.convolution import CausalConvolution
from maxfdl.layers.linen.decoder import Decoder, DecoderLayer, ParallelDecoderLayer
from maxfdl.layers.linen.delta import GatedDeltaNet, GatedRMSNorm
from maxfdl.layers.linen.dropout import Dropout
from maxfdl.layers.linen.embedding import Embedding, PositionEmbedding, ScaledEmbedding
from maxfdl.layers.linen.head import Head, TiedHead
from maxfdl.layers.linen.latent import LatentAttention
from maxfdl.layers.linen.later_token import LaterToken
from maxfdl.layers.linen.linear import Linear, LowRankLinear
from maxfdl.layers.linen.mlp import GatedMlp, Mlp
from maxfdl.layers.linen.moe import Experts, GroupedLinear, MoE, Router
from maxfdl.layers.linen.norm import (
    AcrossHeads,
    LayerNorm,
    PerHead,
    RMSNorm,
    UnitRMSNorm,
    ZeroCentredLayerNorm,
    ZeroCentredRMSNorm,
)
from maxfdl.layers.linen.stack import Stack
from maxfdl.layers.linen.transformer import Transformer

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
