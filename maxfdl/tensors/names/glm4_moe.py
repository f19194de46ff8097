"""Tensor names of GLM-4.5: those of Qwen 3 with experts, and shared ones."""

from maxfdl.tensors.names import qwen3_moe
from maxfdl.tensors.names.llama import LAYER
from maxfdl.tensors.table import NameTable, Row

_SHARED = f"{LAYER}mlp.shared_experts."

SELECTION_BIAS = (
    Row(
        f"{LAYER}mlp.gate.e_score_correction_bias",
        "mlp/router/selection_bias",
        state=True,
    ),
)
SHARED = (
    Row(f"{_SHARED}gate_proj.weight", "mlp/shared/gate/kernel"),
    Row(f"{_SHARED}up_proj.weight", "mlp/shared/up/kernel"),
    Row(f"{_SHARED}down_proj.weight", "mlp/shared/down/kernel"),
)

TABLE = NameTable(
    model_types=("glm4_moe",),
    rows=qwen3_moe.TABLE.rows + SELECTION_BIAS + SHARED,
)
