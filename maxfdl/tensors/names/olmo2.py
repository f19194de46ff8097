"""Tensor names of OLMo 2: norms after the branches, and of queries and keys."""

from maxfdl.tensors.names.llama import ATTENTION, ATTENTION_BIASES, LAYER, MLP, OUTSIDE
from maxfdl.tensors.names.qwen3 import HEAD_NORMS
from maxfdl.tensors.table import NameTable, Row

POST_NORMS = (
    Row(f"{LAYER}post_attention_layernorm.weight", "attention_post_norm/scale"),
    Row(f"{LAYER}post_feedforward_layernorm.weight", "mlp_post_norm/scale"),
)
ROWS = OUTSIDE + POST_NORMS + ATTENTION + ATTENTION_BIASES + HEAD_NORMS + MLP

TABLE = NameTable(model_types=("olmo2",), rows=ROWS)
