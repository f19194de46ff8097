"""Mutations: pure functions from graph to graph, the vocabulary of `--fiddler`.

A mutation and its inverse share a file. Each returns a new graph and leaves its input
alone; doing it twice is doing it once.
"""

from maxfdl.mutations.dtypes import compute_dtype, param_dtype
from maxfdl.mutations.execution import scan_layers, unroll_layers
from maxfdl.mutations.family import to_linen, to_nnx
from maxfdl.mutations.gradient_accumulation import gradient_accumulation
from maxfdl.mutations.mesh import mesh
from maxfdl.mutations.optimizers import (
    use_adam_pax,
    use_adamw,
    use_lion,
    use_muon,
    use_sgd,
)
from maxfdl.mutations.remat import remat
from maxfdl.mutations.router_losses import router_losses, selection_bias
from maxfdl.mutations.vocab_tiling import vocab_tiling

__all__ = [
    "compute_dtype",
    "gradient_accumulation",
    "mesh",
    "param_dtype",
    "remat",
    "router_losses",
    "scan_layers",
    "selection_bias",
    "to_linen",
    "to_nnx",
    "unroll_layers",
    "use_adam_pax",
    "use_adamw",
    "use_lion",
    "use_muon",
    "use_sgd",
    "vocab_tiling",
]
