"""Tensor names of Qwen 2 and 2.5: those of Llama."""

from maxfdl.tensors.names.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    MLP,
    OUTSIDE,
    PRE_NORMS,
)
from maxfdl.tensors.table import NameTable

TABLE = NameTable(
    model_types=("qwen2",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + MLP,
)
