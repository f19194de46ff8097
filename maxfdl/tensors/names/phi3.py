"""Tensor names of Phi 3, which fuses projections of the same input."""

from maxfdl.tensors.layouts import Fused
from maxfdl.tensors.names.llama import LAYER, OUTSIDE, PRE_NORMS
from maxfdl.tensors.table import NameTable, Row

FUSED = (
    Row(
        f"{LAYER}self_attn.qkv_proj.weight",
        ("attention/query/kernel", "attention/key/kernel", "attention/value/kernel"),
        Fused(),
    ),
    Row(f"{LAYER}self_attn.o_proj.weight", "attention/out/kernel"),
    Row(
        f"{LAYER}mlp.gate_up_proj.weight", ("mlp/gate/kernel", "mlp/up/kernel"), Fused()
    ),
    Row(f"{LAYER}mlp.down_proj.weight", "mlp/down/kernel"),
)

TABLE = NameTable(model_types=("phi3",), rows=OUTSIDE + PRE_NORMS + FUSED)
