"""Embeddings of tokens and of positions, see `maxfdl.layers.embedding`."""

from maxfdl.layers import embedding
from maxfdl.layers.linen.module import Module


class Embedding(embedding.Embedding, Module, kw_only=True): ...


class ScaledEmbedding(embedding.ScaledEmbedding, Embedding, kw_only=True): ...


class PositionEmbedding(embedding.PositionEmbedding, Module, kw_only=True): ...
