"""Tensor names of GPT-OSS, which keeps all experts of a layer in one tensor."""

from maxfdl.tensors.layouts import Alternating, AsDeclared
from maxfdl.tensors.names.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    LAYER,
    OUTSIDE,
    PRE_NORMS,
)
from maxfdl.tensors.table import NameTable, Row

_EXPERTS = f"{LAYER}mlp.experts."

MOE = (
    Row(f"{LAYER}self_attn.sinks", "attention/sinks/scores"),
    Row(f"{LAYER}mlp.router.weight", "mlp/router/kernel"),
    Row(f"{LAYER}mlp.router.bias", "mlp/router/bias"),
    Row(
        f"{_EXPERTS}gate_up_proj",
        ("mlp/experts/gate/kernel", "mlp/experts/up/kernel"),
        Alternating(transposed=False),
    ),
    Row(
        f"{_EXPERTS}gate_up_proj_bias",
        ("mlp/experts/gate/bias", "mlp/experts/up/bias"),
        Alternating(),
    ),
    Row(f"{_EXPERTS}down_proj", "mlp/experts/down/kernel", AsDeclared(False)),
    Row(f"{_EXPERTS}down_proj_bias", "mlp/experts/down/bias"),
)

TABLE = NameTable(
    model_types=("gpt_oss",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + MOE,
)
