"""Where parameters and the optimizer's state lie."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put
from maxfdl.mutations.roles import is_trainer
from maxfdl.train.placement import Memory, Placement

C = TypeVar("C", bound=fdl.Buildable)


def zero1(cfg: C, *, optimizer: Literal["sharded", "replicated"] = "sharded") -> C:
    """Shards optimizer state over data-parallel replicas (ZeRO-1).

    Same updates up to the order of sums; the state's memory is divided by the size of
    the mesh axis `data`. See `maxfdl.train.placement.Placement`.
    `zero1(optimizer=replicated)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    return _placed(cfg, optimizer=optimizer)


def offload_optimizer(cfg: C, *, memory: Memory = "host") -> C:
    """Keeps optimizer state in host memory.

    During the update the state of one layer at a time is on the device, if layers are
    stacked. Same updates within float32 rounding. See
    `maxfdl.train.placement.Placement`. `offload_optimizer(memory=device)` is the
    inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    return _placed(cfg, memory=memory)


def offload_parameters(cfg: C, *, memory: Memory = "host") -> C:
    """Keeps parameters in host memory.

    The parameters of a layer are copied to the device when it runs, and for its update;
    `unroll_layers` fetches all of a stack at once, and so does the evaluation of an
    average. Same numbers within float32 rounding. See
    `maxfdl.train.placement.Placement`. `offload_parameters(memory=device)` is the
    inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    return _placed(cfg, param_memory=memory)


def _placed(cfg: C, **fields: str) -> C:
    """Returns a copy of `cfg` with these fields of placement; a default is left out."""
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        for name, value in fields.items():
            is_default = value == getattr(Placement, name)
            put(trainer.placement, name, None if is_default else value)
    return out
