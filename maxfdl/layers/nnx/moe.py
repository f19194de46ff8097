"""Mixture of experts, see `maxfdl.layers.moe`."""

from maxfdl.layers import moe
from maxfdl.layers.nnx.module import Module


class Router(moe.Router, Module): ...


class GroupedLinear(moe.GroupedLinear, Module): ...


class Experts(moe.Experts, Module): ...


class MoE(moe.MoE, Module): ...
