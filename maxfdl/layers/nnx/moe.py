"""Mixture of experts, see `maxfdl.layers.moe`."""

from maxfdl.layers import moe
from maxfdl.layers.nnx.module import Module


class Router(moe.Router, Module):
    pass


class GroupedLinear(moe.GroupedLinear, Module):
    pass


class Experts(moe.Experts, Module):
    pass


class MoE(moe.MoE, Module):
    pass
