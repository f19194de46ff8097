"""Mixture of experts, see `maxfdl.layers.moe`."""

from maxfdl.layers import moe
from maxfdl.layers.linen.module import Module


class Router(moe.Router, Module, kw_only=True): ...


class GroupedLinear(moe.GroupedLinear, Module, kw_only=True): ...


class Experts(moe.Experts, Module, kw_only=True): ...


class MoE(moe.MoE, Module, kw_only=True): ...
