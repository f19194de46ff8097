"""Checkpoints on the disks of the machines that train."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.checkpoint.emergency import Emergency
from maxfdl.experiment import Experiment
from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import put

C = TypeVar("C", bound=fdl.Buildable)


def emergency_checkpoints(
    cfg: C, *, folder: str = "/dev/shm/maxfdl", every: int = 10, keep: int = 2
) -> C:
    """Saves every few steps on local disks, each share also on that of a peer.

    A run whose process or machine dies goes on from there, if one copy of each share
    is left. See `maxfdl.checkpoint.emergency.Emergency`. `folder` is on a disk of each
    machine, or in its memory, as the default is. `emergency_checkpoints(every=0)` is
    the inverse.

    Raises:
      MutationError: If there is no experiment.
    """
    out = copy(cfg)
    for experiment in nodes_of(out, Experiment):
        options = fdl.Config(Emergency, folder=folder, every_steps=every, keep=keep)
        put(experiment, "emergency", options if every else None)
    return out
