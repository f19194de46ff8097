"""Presets of the mesh and of the rules that go with it.

Each is a mutation, for expressions such as
`experiments.pretrain(model=llama3_70b)+fdl_configs.meshes.fsdp_tensor(tensor=8)`. It
sets all axes of the mesh, and the rules back to their defaults but for what it names.
One axis, `fsdp` unless it is given, takes the devices that the others leave.
"""

from typing import Any, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations import mesh
from maxfdl.mutations.fields import put
from maxfdl.sharding.rules import AxisRules, dims

C = TypeVar("C", bound=fdl.Buildable)


def fsdp(cfg: C, *, fsdp: int = -1) -> C:
    """Fully sharded data parallelism: parameters are gathered layer by layer."""
    return _with_rules(mesh(cfg, fsdp=fsdp))


def fsdp_tensor(
    cfg: C, *, tensor: int, fsdp: int = -1, sequence_parallel: bool = True
) -> C:
    """FSDP around groups that share matrix products: Megatron's tensor parallelism.

    With `sequence_parallel`, each of a group has other tokens of the residual stream.
    """
    rules = {"residual": ("context", "tensor")} if sequence_parallel else {}
    return _with_rules(mesh(cfg, fsdp=fsdp, tensor=tensor), **rules)


def expert(cfg: C, *, expert: int, fsdp: int = -1) -> C:
    """FSDP around groups that share the experts; tokens travel to theirs."""
    return _with_rules(mesh(cfg, fsdp=fsdp, expert=expert))


def context(cfg: C, *, context: int, fsdp: int = -1) -> C:
    """FSDP around groups that share the sequence of a row."""
    return _with_rules(mesh(cfg, fsdp=fsdp, context=context))


def pipeline(cfg: C, *, stage: int, fsdp: int = -1) -> C:
    """FSDP around the stages of a pipeline.

    The mutation `pipeline(stages=..., microbatches=...)` says how stacks run.
    """
    return _with_rules(mesh(cfg, fsdp=fsdp, stage=stage))


def multislice(cfg: C, *, slices: int, fsdp: int = -1, tensor: int = 1) -> C:
    """Hybrid sharding: FSDP in each slice, and data parallelism across slices.

    What crosses the data-centre network is one sum of the gradients' shards a step.
    """
    laid_out = mesh(cfg, data=slices, fsdp=fsdp, tensor=tensor, across=("data",))
    return _with_rules(laid_out)


def _with_rules(cfg: C, **rules: Any) -> C:
    """Returns a copy with these rules, and the defaults for all others."""
    out = copy(cfg)
    for node in nodes_of(out, AxisRules):
        for name in (*dims(), "cut_in_use"):
            put(node, name, rules.get(name))
    return out
