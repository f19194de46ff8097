"""Llama 2 in NNX, trained by Streaming DiLoCo: a part of the model at a time."""

import fiddle as fdl

from experiments import llama2_nnx
from maxfdl.experiment import Experiment
from maxfdl.mutations import use_diloco


def experiment(
    num_replicas: int = 2, sync_period: int = 20, fragments: int = 2
) -> fdl.Config[Experiment]:
    """Trains `llama2_nnx` in replicas that sync every other layer in turns.

    An exchange runs beside the next step, and replicas take over what it gave after
    four more: half of it, for their own weights have moved on.
    """
    config = use_diloco(
        llama2_nnx.experiment(),
        num_replicas=num_replicas,
        sync_period=sync_period,
        fragments=fragments,
        overlap=5,
        mix=0.5,
    )
    config.name = "streaming_diloco_tiny"
    return config
