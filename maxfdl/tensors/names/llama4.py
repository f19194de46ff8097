"""Tensor names of Llama 4, which keeps all experts of a layer in one tensor."""

from maxfdl.tensors.layouts import AsDeclared, Fused
from maxfdl.tensors.names.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    LAYER,
    OUTSIDE,
    PRE_NORMS,
)
from maxfdl.tensors.table import NameTable, Row

_MLP = f"{LAYER}feed_forward."
_SHARED = f"{_MLP}shared_expert."

DENSE = (
    Row(f"{_MLP}gate_proj.weight", "mlp/gate/kernel"),
    Row(f"{_MLP}up_proj.weight", "mlp/up/kernel"),
    Row(f"{_MLP}down_proj.weight", "mlp/down/kernel"),
)
MOE = (
    Row(f"{_MLP}router.weight", "mlp/router/kernel"),
    Row(
        f"{_MLP}experts.gate_up_proj",
        ("mlp/experts/gate/kernel", "mlp/experts/up/kernel"),
        Fused(transposed=False),
    ),
    Row(f"{_MLP}experts.down_proj", "mlp/experts/down/kernel", AsDeclared(False)),
    Row(f"{_SHARED}gate_proj.weight", "mlp/shared/gate/kernel"),
    Row(f"{_SHARED}up_proj.weight", "mlp/shared/up/kernel"),
    Row(f"{_SHARED}down_proj.weight", "mlp/shared/down/kernel"),
)

TABLE = NameTable(
    model_types=("llama4_text",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + DENSE + MOE,
)
