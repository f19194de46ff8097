"""Where the optimizer's state lies."""

from typing import Literal, TypeVar

import fiddle as fdl

from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.roles import is_trainer

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
