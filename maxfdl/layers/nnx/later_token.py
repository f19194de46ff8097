"""Prediction of tokens beyond the next, see `maxfdl.layers.later_token`."""

from maxfdl.layers import later_token
from maxfdl.layers.nnx.module import Module


class LaterToken(later_token.LaterToken, Module): ...
