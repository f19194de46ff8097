"""Attention over a latent vector per token, see `maxfdl.layers.latent`."""

from maxfdl.layers import latent
from maxfdl.layers.nnx.module import Module


class LatentAttention(latent.LatentAttention, Module): ...
