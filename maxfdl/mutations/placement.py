"""Where parameters and the optimizer's state lie."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.roles import is_trainer
from maxfdl.train.placement import Memory

C = TypeVar("C", bound=fdl.Buildable)


def zero1(cfg: C, *, optimizer: Literal["sharded", "replicated"] = "sharded") -> C:
    """Returns a copy of `cfg` whose replicas share out the state of the optimizer.

    Same updates up to the order of sums; memory falls by the mesh axis `data`. See
    `maxfdl.train.placement.Placement`. `zero1(optimizer=replicated)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        if optimizer == "sharded":
            trainer.placement.optimizer = optimizer
        elif "optimizer" in trainer.placement.__arguments__:
            del trainer.placement.optimizer
    return out


def offload_optimizer(cfg: C, *, memory: Memory = "host") -> C:
    """Returns a copy of `cfg` that keeps the optimizer's state in the host's memory.

    Same updates to the last bit. It makes room for activations and none for the update,
    whose peak grows: see `maxfdl.train.placement.Placement`.
    `offload_optimizer(memory=device)` is the inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    return _with_memory(cfg, "memory", memory)


def offload_parameters(cfg: C, *, memory: Memory = "host") -> C:
    """Returns a copy of `cfg` that keeps parameters in the host's memory.

    A layer's come to the device when it runs. Same numbers to the last bit. See
    `maxfdl.train.placement.Placement`. `offload_parameters(memory=device)` is the
    inverse.

    Raises:
      MutationError: If there is no trainer.
    """
    return _with_memory(cfg, "param_memory", memory)


def _with_memory(cfg: C, field: str, memory: Memory) -> C:
    out = copy(cfg)
    for trainer in nodes_of(out, is_trainer):
        if memory == "host":
            setattr(trainer.placement, field, memory)
        elif field in trainer.placement.__arguments__:
            delattr(trainer.placement, field)
    return out
