"""Tensor names of Mistral: those of Llama, without biases."""

from maxfdl.tensors.names.llama import ATTENTION, MLP, OUTSIDE, PRE_NORMS
from maxfdl.tensors.table import NameTable

TABLE = NameTable(model_types=("mistral",), rows=OUTSIDE + PRE_NORMS + ATTENTION + MLP)
