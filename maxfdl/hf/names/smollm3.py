"""Tensor names of SmolLM 3: those of Llama."""

from maxfdl.hf.names import llama
from maxfdl.hf.table import NameTable

TABLE = NameTable(model_types=("smollm3",), rows=llama.TABLE.rows)
