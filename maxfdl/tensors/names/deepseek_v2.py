"""Tensor names of DeepSeek-V2: latent attention, and experts in most layers."""

from maxfdl.tensors.layouts import Fused
from maxfdl.tensors.names.llama import LAYER, MLP, MLP_BIASES, OUTSIDE, PRE_NORMS
from maxfdl.tensors.names.qwen3_moe import EXPERTS
from maxfdl.tensors.table import NameTable, Row

LATENT_ATTENTION = (
    Row(f"{LAYER}self_attn.q_proj.weight", "attention/query/kernel"),
    Row(f"{LAYER}self_attn.q_a_proj.weight", "attention/query/down/kernel"),
    Row(f"{LAYER}self_attn.q_a_proj.bias", "attention/query/down/bias"),
    Row(f"{LAYER}self_attn.q_a_layernorm.weight", "attention/query/norm/scale"),
    Row(f"{LAYER}self_attn.q_b_proj.weight", "attention/query/up/kernel"),
    Row(
        f"{LAYER}self_attn.kv_a_proj_with_mqa.weight",
        ("attention/latent/kernel", "attention/rope_key/kernel"),
        Fused(),
    ),
    Row(
        f"{LAYER}self_attn.kv_a_proj_with_mqa.bias",
        ("attention/latent/bias", "attention/rope_key/bias"),
        Fused(),
    ),
    Row(f"{LAYER}self_attn.kv_a_layernorm.weight", "attention/latent_norm/scale"),
    Row(
        f"{LAYER}self_attn.kv_b_proj.weight",
        ("attention/key/kernel", "attention/value/kernel"),
        Fused(groups="num_attention_heads"),
    ),
    Row(f"{LAYER}self_attn.o_proj.weight", "attention/out/kernel"),
    Row(f"{LAYER}self_attn.o_proj.bias", "attention/out/bias"),
)
SHARED_EXPERTS = tuple(
    Row(f"{LAYER}mlp.shared_experts.{each}_proj.{theirs}", f"mlp/shared/{each}/{ours}")
    for each in ("gate", "up", "down")
    for theirs, ours in (("weight", "kernel"), ("bias", "bias"))
)

TABLE = NameTable(
    model_types=("deepseek_v2",),
    rows=OUTSIDE
    + PRE_NORMS
    + LATENT_ATTENTION
    + MLP
    + MLP_BIASES
    + EXPERTS
    + SHARED_EXPERTS,
)
