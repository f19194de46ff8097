"""Llama 2 in NNX, trained by DiLoCo: replicas that meet every 20 steps."""

import fiddle as fdl

from experiments import llama2_nnx
from maxfdl.experiment import Experiment
from maxfdl.mutations import use_diloco


def experiment(num_replicas: int = 2, sync_period: int = 20) -> fdl.Config[Experiment]:
    """Trains `llama2_nnx` in replicas, which take turns on one device.

    On several devices, `mesh(replica=2, fsdp=-1)` gives each replica some of its own.
    """
    config = use_diloco(
        llama2_nnx.experiment(),
        num_replicas=num_replicas,
        sync_period=sync_period,
        momentum=0.6,  # the published 0.9 overshoots in a run of so few syncs
    )
    config.name = "diloco_tiny"
    return config
