"""Toy mutations: copy, change, return."""

import fiddle as fdl

from maxfdl.graph.mutate import copy, swap
from maxfdl.graph.select import nodes_of
from tests.graph.toys import ops
from tests.graph.toys.linen import layers as linen
from tests.graph.toys.nnx import layers as nnx

NAMES = ("Linear", "Attention", "Decoder")


def _move(cfg, source, target):
    out = copy(cfg)
    for name in NAMES:
        for node in nodes_of(out, getattr(source, name)):
            swap(node, getattr(target, name))
    return out


def to_linen(cfg: fdl.Config) -> fdl.Config:
    """Makes every layer a Linen layer."""
    return _move(cfg, nnx, linen)


def to_nnx(cfg: fdl.Config) -> fdl.Config:
    """Makes every layer an NNX layer."""
    return _move(cfg, linen, nnx)


def enable_fp8(cfg: fdl.Config, forward: str = "e4m3fn") -> fdl.Config:
    """Makes every Dot an Fp8Dot."""
    out = copy(cfg)
    for node in nodes_of(out, ops.Dot):
        swap(node, ops.Fp8Dot, forward=forward)
    return out


def forgets_to_return(cfg: fdl.Config) -> None:
    """A mutation with a bug."""
    copy(cfg)
