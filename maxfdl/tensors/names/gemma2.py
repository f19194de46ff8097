"""Tensor names of Gemma 2: Gemma with four norms in a layer."""

from maxfdl.tensors.names.gemma import OUTSIDE
from maxfdl.tensors.names.llama import ATTENTION, ATTENTION_BIASES, LAYER, MLP
from maxfdl.tensors.table import NameTable, Row

NORMS = (
    Row(f"{LAYER}input_layernorm.weight", "attention_norm/offset"),
    Row(f"{LAYER}post_attention_layernorm.weight", "attention_post_norm/offset"),
    Row(f"{LAYER}pre_feedforward_layernorm.weight", "mlp_norm/offset"),
    Row(f"{LAYER}post_feedforward_layernorm.weight", "mlp_post_norm/offset"),
)

TABLE = NameTable(
    model_types=("gemma2",), rows=OUTSIDE + NORMS + ATTENTION + ATTENTION_BIASES + MLP
)
