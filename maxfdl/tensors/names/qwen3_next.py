"""Tensor names of Qwen3-Next: gated and linear attention, and a gated shared expert."""

from maxfdl.tensors.layouts import Depthwise, Fused
from maxfdl.tensors.names.gemma import OUTSIDE, PRE_NORMS
from maxfdl.tensors.names.llama import LAYER, MLP
from maxfdl.tensors.names.qwen3_moe import EXPERTS
from maxfdl.tensors.table import NameTable, Row

# Linear attention has a query, a key, a value and an output of other names.
FULL = "attention/query_norm/norm/offset"
LINEAR = "attention/a_log"

_PARTS = (("weight", "kernel"), ("bias", "bias"))
FULL_ATTENTION = (
    *(
        # Of each head, the query and then its gate.
        Row(
            f"{LAYER}self_attn.q_proj.{theirs}",
            (f"attention/query/{ours}", f"attention/gate/{ours}"),
            Fused(groups="num_attention_heads"),
        )
        for theirs, ours in _PARTS
    ),
    *(
        Row(
            f"{LAYER}self_attn.{name}_proj.{theirs}",
            f"attention/{path}/{ours}",
            beside=FULL,
        )
        for name, path in (("k", "key"), ("v", "value"), ("o", "out"))
        for theirs, ours in _PARTS
    ),
    Row(f"{LAYER}self_attn.q_norm.weight", "attention/query_norm/norm/offset"),
    Row(f"{LAYER}self_attn.k_norm.weight", "attention/key_norm/norm/offset"),
)
_LINEAR = f"{LAYER}linear_attn."
# Of each key head, all that it shares with its value heads.
LINEAR_ATTENTION = (
    Row(
        f"{_LINEAR}in_proj_qkvz.weight",
        (
            "attention/query/kernel",
            "attention/key/kernel",
            "attention/value/kernel",
            "attention/output_gate/kernel",
        ),
        Fused(groups="linear_num_key_heads"),
    ),
    Row(
        f"{_LINEAR}in_proj_ba.weight",
        ("attention/beta/kernel", "attention/decay/kernel"),
        Fused(groups="linear_num_key_heads"),
    ),
    Row(
        f"{_LINEAR}conv1d.weight",
        (
            "attention/query_conv/kernel",
            "attention/key_conv/kernel",
            "attention/value_conv/kernel",
        ),
        Depthwise(),
    ),
    Row(f"{_LINEAR}A_log", "attention/a_log"),
    Row(f"{_LINEAR}dt_bias", "attention/dt_bias"),
    Row(f"{_LINEAR}norm.weight", "attention/norm/scale"),
    Row(f"{_LINEAR}out_proj.weight", "attention/out/kernel", beside=LINEAR),
)
SHARED_EXPERT = (
    *(
        Row(f"{LAYER}mlp.shared_expert.{each}_proj.weight", f"mlp/shared/{each}/kernel")
        for each in ("gate", "up", "down")
    ),
    Row(f"{LAYER}mlp.shared_expert_gate.weight", "mlp/shared_gate/kernel"),
)

TABLE = NameTable(
    model_types=("qwen3_next",),
    rows=OUTSIDE
    + PRE_NORMS
    + FULL_ATTENTION
    + LINEAR_ATTENTION
    + MLP
    + EXPERTS
    + SHARED_EXPERT,
    later=r"^mtp\.",
)
