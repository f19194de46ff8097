"""Tensor names of SmolLM 3: those of Llama."""

from maxfdl.tensors.names import llama
from maxfdl.tensors.table import NameTable

TABLE = NameTable(model_types=("smollm3",), rows=llama.TABLE.rows)
