"""Llama 2 in Linen: the runs of `llama2_nnx`, to the last bit."""

import fiddle as fdl

from experiments import llama2_nnx
from maxfdl.experiment import Experiment
from maxfdl.mutations import to_linen


def experiment(size: llama2_nnx.Size = "tiny") -> fdl.Config[Experiment]:
    """Trains on Python's own sources; `tiny` takes two minutes on two CPU cores."""
    return to_linen(llama2_nnx.experiment(size=size))
