"""Tensor names of Mistral: those of Llama, without biases."""

from maxfdl.hf.names.llama import ATTENTION, MLP, OUTSIDE, PRE_NORMS
from maxfdl.hf.table import NameTable

TABLE = NameTable(model_types=("mistral",), rows=OUTSIDE + PRE_NORMS + ATTENTION + MLP)
