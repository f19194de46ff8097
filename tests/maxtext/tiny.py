"""One tiny network of each decoder that MaxText has, by MaxText's options."""

from typing import Any

import jax
import numpy as np

from fdl_configs.maxtext import network, published_network
from maxfdl import graph
from maxfdl.model import Model, NnxModel
from maxfdl.tensors.maxtext.options import Options, resolved

_SHAPE = {
    "emb_dim": 16,
    "num_query_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "mlp_dim": 24,
    "num_decoder_layers": 2,
    "vocab_size": 32,
    "dtype": "float32",
    "max_target_length": 8,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_mlp_dim": 24}
_GEMMA = {
    "mlp_activations": ["gelu", "linear"],
    "logits_via_embedding": True,
    "normalization_layer_epsilon": 1e-6,
    "sliding_window_size": 4,
    "use_post_attn_norm": True,
    "use_post_ffw_norm": True,
}
_LATENT = {
    "decoder_block": "deepseek",
    "num_kv_heads": 2,
    "num_decoder_layers": 3,
    "attention_type": "mla",
    "first_num_dense_layers": 1,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "shared_experts": 2,
    "rope_type": "yarn",
    **_MOE,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama2": {"decoder_block": "llama2"},
    "llama3.1": {"decoder_block": "llama2", "model_name": "llama3.1-8b"},
    "fused": {
        "decoder_block": "llama2",
        "num_kv_heads": 2,
        "fused_qkv": True,
        "fused_mlp": True,
    },
    "mistral": {"decoder_block": "mistral"},
    "mixtral": {"decoder_block": "mixtral", **_MOE},
    "qwen2": {"decoder_block": "qwen2", "attention_bias": True},
    "qwen3": {
        "decoder_block": "qwen3",
        "use_qk_norm": True,
        "logits_via_embedding": True,
        "normalize_embedding_logits": False,
    },
    "qwen3_moe": {"decoder_block": "qwen3_moe", "use_qk_norm": True, **_MOE},
    "gemma": _GEMMA | {"decoder_block": "gemma"},
    "gemma2": _GEMMA
    | {
        "decoder_block": "gemma2",
        "attn_logits_soft_cap": 50.0,
        "final_logits_soft_cap": 30.0,
    },
    "gemma3": _GEMMA
    | {
        "decoder_block": "gemma3",
        "model_name": "gemma3-4b",
        "num_decoder_layers": 14,
        "local_rope_max_timescale": 10_000,
        "rope_linear_scaling_factor": 8.0,
    },
    "deepseek2": _LATENT
    | {"model_name": "deepseek2-16b", "routed_score_func": "softmax"},
    "deepseek3": _LATENT
    | {
        "model_name": "deepseek3-tiny",
        "q_lora_rank": 8,
        "routed_score_func": "sigmoid",
        "routed_bias": True,
        "n_routing_groups": 2,
        "topk_routing_group": 1,
    },
    "gpt3": {
        "decoder_block": "gpt3",
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_activations": ["gelu"],
        "trainable_position_size": 8,
        "logits_via_embedding": True,
        "normalize_embedding_logits": False,
        "fused_qkv": True,
    },
    "gpt_oss": {
        "decoder_block": "gpt_oss",
        "num_decoder_layers": 4,
        "mlp_activations": ["sigmoid", "linear"],
        "mlp_activations_limit": 7.0,
        "attention_bias": True,
        "attention_sink": True,
        "routed_bias": True,
        "mlp_bias": True,
        "sliding_window_size": 4,
        "rope_type": "yarn",
        "rope_interleave": False,
        "inhomogeneous_layer_cycle_interval": 2,
        **_MOE,
    },
    "olmo3": {
        "decoder_block": "olmo3",
        "model_name": "olmo3-7b",
        "num_decoder_layers": 4,
        "use_qk_norm": True,
        "sliding_window_size": 4,
        "rope_type": "yarn",
        "rope_interleave": False,
        "rope_attention_scaling": True,
        "inhomogeneous_layer_cycle_interval": 4,
    },
    "llama4": {
        "decoder_block": "llama4",
        "num_decoder_layers": 4,
        "rope_type": "llama3.1",
        "use_qk_norm": True,
        "nope_layer_interval": 4,
        "interleave_moe_layer_step": 2,
        "inhomogeneous_layer_cycle_interval": 4,
        "temperature_tuning": True,
        "chunk_attn_window_size": 4,
        "shared_experts": 1,
        **_MOE,
        "num_experts_per_tok": 1,
    },
    "qwen3_next": {
        "decoder_block": "qwen3_next",
        "num_decoder_layers": 4,
        "partial_rotary_factor": 0.25,
        "inhomogeneous_layer_cycle_interval": 4,
        "gdn_key_head_dim": 4,
        "gdn_value_head_dim": 6,
        "gdn_num_key_heads": 2,
        "gdn_num_value_heads": 4,
        "shared_experts": 1,
        "norm_topk_prob": True,
        **_MOE,
    },
}


def options(name: str) -> Options:
    return resolved({**_SHAPE, **OPTIONS[name]}, name)


def published(name: str) -> Any:
    """Returns the graph of a network in the form of published weights."""
    return published_network(options(name))


def in_maxtext_form(name: str) -> Any:
    return network(options(name))


def model(graph_of_network: Any) -> Model:
    return NnxModel(module=graph.build(graph_of_network))


def variables(made: Model, seed: int = 0) -> dict[str, Any]:
    """Returns random variables that no form rounds.

    1 added to norms' offsets or taken off their scales is exact, and so is a factor of
    4, the root of the widths here.
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, declared: Any) -> jax.Array:
        name = path[-1].key
        values = rng.normal(size=declared.full_shape).astype(np.float32)
        if name in ("scale", "offset"):
            values = np.float32(1) + np.float32(0.2) * np.clip(values, -2, 2)
        if name == "offset":
            values = values - np.float32(1)
        return jax.numpy.asarray(values)

    declared = {"params": made.parameters(), "state": made.state()}
    return jax.tree_util.tree_map_with_path(draw, declared)
