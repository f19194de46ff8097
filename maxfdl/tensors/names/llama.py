"""Tensor names of Llama, and of what has its layers: SmolLM 2, for one."""

from maxfdl.tensors.table import NameTable, Row

LAYER = "model.layers.{layer}."

OUTSIDE = (
    Row("model.embed_tokens.weight", "embedding/table"),
    Row("model.norm.weight", "final_norm/scale"),
    Row("lm_head.weight", "head/kernel"),
)
PRE_NORMS = (
    Row(f"{LAYER}input_layernorm.weight", "attention_norm/scale"),
    Row(f"{LAYER}post_attention_layernorm.weight", "mlp_norm/scale"),
)
ATTENTION = (
    Row(f"{LAYER}self_attn.q_proj.weight", "attention/query/kernel"),
    Row(f"{LAYER}self_attn.k_proj.weight", "attention/key/kernel"),
    Row(f"{LAYER}self_attn.v_proj.weight", "attention/value/kernel"),
    Row(f"{LAYER}self_attn.o_proj.weight", "attention/out/kernel"),
)
ATTENTION_BIASES = (
    Row(f"{LAYER}self_attn.q_proj.bias", "attention/query/bias"),
    Row(f"{LAYER}self_attn.k_proj.bias", "attention/key/bias"),
    Row(f"{LAYER}self_attn.v_proj.bias", "attention/value/bias"),
    Row(f"{LAYER}self_attn.o_proj.bias", "attention/out/bias"),
)
MLP = (
    Row(f"{LAYER}mlp.gate_proj.weight", "mlp/gate/kernel"),
    Row(f"{LAYER}mlp.up_proj.weight", "mlp/up/kernel"),
    Row(f"{LAYER}mlp.down_proj.weight", "mlp/down/kernel"),
)
MLP_BIASES = (
    Row(f"{LAYER}mlp.gate_proj.bias", "mlp/gate/bias"),
    Row(f"{LAYER}mlp.up_proj.bias", "mlp/up/bias"),
    Row(f"{LAYER}mlp.down_proj.bias", "mlp/down/bias"),
)

TABLE = NameTable(
    model_types=("llama",),
    rows=OUTSIDE + PRE_NORMS + ATTENTION + ATTENTION_BIASES + MLP + MLP_BIASES,
)
