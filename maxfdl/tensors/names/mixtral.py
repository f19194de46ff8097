"""Tensor names of Mixtral: Llama's attention, and experts with names of their own."""

from maxfdl.tensors.names.llama import ATTENTION, LAYER, OUTSIDE, PRE_NORMS
from maxfdl.tensors.table import NameTable, Row

MOE = f"{LAYER}block_sparse_moe."

EXPERTS = (
    Row(f"{MOE}gate.weight", "mlp/router/kernel"),
    Row(f"{MOE}experts.{{expert}}.w1.weight", "mlp/experts/gate/kernel"),
    Row(f"{MOE}experts.{{expert}}.w2.weight", "mlp/experts/down/kernel"),
    Row(f"{MOE}experts.{{expert}}.w3.weight", "mlp/experts/up/kernel"),
)

TABLE = NameTable(
    model_types=("mixtral",), rows=OUTSIDE + PRE_NORMS + ATTENTION + EXPERTS
)
