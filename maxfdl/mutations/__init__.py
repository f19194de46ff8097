"""Mutations: pure functions from graph to graph, the vocabulary of `--fiddler`.

A mutation and its inverse share a file. Each returns a new graph and leaves its input
alone; doing it twice is doing it once.
"""

from maxfdl.mutations.dtypes import compute_dtype, param_dtype
from maxfdl.mutations.execution import scan_layers, unroll_layers
from maxfdl.mutations.family import to_linen, to_nnx
from maxfdl.mutations.mesh import mesh
from maxfdl.mutations.remat import remat

__all__ = [
    "compute_dtype",
    "mesh",
    "param_dtype",
    "remat",
    "scan_layers",
    "to_linen",
    "to_nnx",
    "unroll_layers",
]
