"""Embeddings of tokens and of positions, see `maxfdl.layers.embedding`."""

from maxfdl.layers import embedding
from maxfdl.layers.nnx.module import Module


class Embedding(embedding.Embedding, Module): ...


class ScaledEmbedding(embedding.ScaledEmbedding, Embedding): ...


class PositionEmbedding(embedding.PositionEmbedding, Module): ...
