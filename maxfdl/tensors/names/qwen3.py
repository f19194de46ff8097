"""Tensor names of dense Qwen 3: those of Llama, with norms of queries and keys."""

from maxfdl.tensors.names.llama import (
    ATTENTION,
    ATTENTION_BIASES,
    LAYER,
    MLP,
    OUTSIDE,
    PRE_NORMS,
)
from maxfdl.tensors.table import NameTable, Row

HEAD_NORMS = (
    Row(f"{LAYER}self_attn.q_norm.weight", "attention/query_norm/norm/scale"),
    Row(f"{LAYER}self_attn.k_norm.weight", "attention/key_norm/norm/scale"),
)

TABLE = NameTable(
    model_types=("qwen3",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + HEAD_NORMS + MLP,
)
