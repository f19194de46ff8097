"""Tensor names of Gemma; its norms keep what is added to a scale of 1."""

from maxfdl.tensors.names.llama import ATTENTION, ATTENTION_BIASES, LAYER, MLP
from maxfdl.tensors.table import NameTable, Row

OUTSIDE = (
    Row("model.embed_tokens.weight", "embedding/table"),
    Row("model.norm.weight", "final_norm/offset"),
    Row("lm_head.weight", "head/kernel"),
)
PRE_NORMS = (
    Row(f"{LAYER}input_layernorm.weight", "attention_norm/offset"),
    Row(f"{LAYER}post_attention_layernorm.weight", "mlp_norm/offset"),
)

TABLE = NameTable(
    model_types=("gemma",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + MLP,
)
