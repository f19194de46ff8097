"""Tensor names of Gemma 3, its text part: Gemma 2 with norms of queries and keys."""

from maxfdl.tensors.names.gemma import OUTSIDE
from maxfdl.tensors.names.gemma2 import NORMS
from maxfdl.tensors.names.llama import ATTENTION, ATTENTION_BIASES, LAYER, MLP
from maxfdl.tensors.table import NameTable, Row

HEAD_NORMS = (
    Row(f"{LAYER}self_attn.q_norm.weight", "attention/query_norm/norm/offset"),
    Row(f"{LAYER}self_attn.k_norm.weight", "attention/key_norm/norm/offset"),
)

TABLE = NameTable(
    model_types=("gemma3_text",),
    rows=OUTSIDE + NORMS + ATTENTION + ATTENTION_BIASES + HEAD_NORMS + MLP,
)
