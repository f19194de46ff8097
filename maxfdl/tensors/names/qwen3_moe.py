"""Tensor names of Qwen 3 with experts: each expert is a Llama MLP."""

from maxfdl.tensors.names.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    LAYER,
    MLP,
    OUTSIDE,
    PRE_NORMS,
)
from maxfdl.tensors.names.qwen3 import HEAD_NORMS
from maxfdl.tensors.table import NameTable, Row

EXPERTS = (
    Row(f"{LAYER}mlp.gate.weight", "mlp/router/kernel"),
    *(
        Row(
            f"{LAYER}mlp.experts.{{expert}}.{name}_proj.weight",
            f"mlp/experts/{name}/kernel",
        )
        for name in ("gate", "up", "down")
    ),
)

TABLE = NameTable(
    model_types=("qwen3_moe",),
    rows=OUTSIDE
    + PRE_NORMS
    + ATTENTION
    + ATTENTION_BIASES
    + HEAD_NORMS
    + MLP
    + EXPERTS,
)
