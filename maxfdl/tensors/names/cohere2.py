"""Tensor names of Cohere 2: one norm in a layer."""

from maxfdl.tensors.names.llama import ATTENTION, ATTENTION_BIASES, LAYER, MLP, OUTSIDE
from maxfdl.tensors.table import NameTable, Row

NORM = (Row(f"{LAYER}input_layernorm.weight", "norm/scale"),)

TABLE = NameTable(
    model_types=("cohere2",), rows=OUTSIDE + NORM + ATTENTION + ATTENTION_BIASES + MLP
)
