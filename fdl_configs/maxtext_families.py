"""MaxText's options as the config.json of a family, and back."""

from collections.abc import Callable
from typing import Any

from maxfdl.errors import UserError
from maxfdl.ops.rope import yarn_magnitude
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.form import is_llama3_rope, maxtext_form, turn_of
from maxfdl.tensors.maxtext.options import Options, only, version_of


def hugging_face(options: Options) -> Config:
    """Returns the config.json of the family that options describe.

    Raises:
      UserError: If an option says what no family here computes.
    """
    return _FAMILIES[options["decoder_block"]](options)


def _shape(options: Options, model_type: str) -> Config:
    """Returns what the config.json of most families has in common."""
    activation, *linear = options["mlp_activations"]
    if linear != ["linear"]:
        raise UserError(
            f"MaxText's mlp_activations ({options['mlp_activations']}) must be one"
            " function and linear."
        )
    return {
        "model_type": model_type,
        "hidden_size": options["emb_dim"],
        "num_hidden_layers": options["num_decoder_layers"],
        "num_attention_heads": options["num_query_heads"],
        "num_key_value_heads": options["num_kv_heads"],
        "head_dim": options["head_dim"],
        "intermediate_size": options["mlp_dim"],
        "vocab_size": options["vocab_size"],
        "tie_word_embeddings": options["logits_via_embedding"],
        "rms_norm_eps": options["normalization_layer_epsilon"],
        "hidden_act": _activation(activation),
        "max_position_embeddings": options["max_target_length"],
        "rope_parameters": _rope(options),
    }


def _activation(name: str) -> str:
    # Flax's gelu, which MaxText takes, is the approximation by tanh.
    return "gelu_pytorch_tanh" if name == "gelu" else name


def _rope(options: Options) -> Config:
    rope: Config = {"rope_type": "default"}
    if is_llama3_rope(options):
        if options["rope_use_scale"]:
            rope = {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
    elif options["rope_type"].startswith("yarn"):
        factor = float(options["rope_factor"])
        scaled = options["rope_attention_scaling"]
        rope = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": options[
                "original_max_position_embeddings"
            ],
            "beta_fast": float(options["beta_fast"]),
            "beta_slow": float(options["beta_slow"]),
            "truncate": options["rope_truncate"],
            "attention_factor": yarn_magnitude(factor) if scaled else 1.0,
        }
    elif options["rope_linear_scaling_factor"] != 1.0:
        rope = {"rope_type": "linear", "factor": options["rope_linear_scaling_factor"]}
    return {**rope, "rope_theta": float(options["rope_max_timescale"])}


def _llama(options: Options) -> Config:
    only(options, "sliding_window_size", 0)
    return _shape(options, "llama")


def _mistral(options: Options) -> Config:
    return _shape(options, "mistral") | {"sliding_window": None}


def _mixtral(options: Options) -> Config:
    return _shape(options, "mixtral") | {
        "num_local_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "sliding_window": None,
    }


def _qwen2(options: Options) -> Config:
    only(options, "attention_bias", True)
    return _shape(options, "qwen2") | {"use_sliding_window": False}


def _qwen3(options: Options) -> Config:
    only(options, "use_qk_norm", True)
    return _shape(options, "qwen3") | {
        "attention_bias": False,
        "use_sliding_window": False,
    }


def _qwen3_moe(options: Options) -> Config:
    only(options, "use_qk_norm", True)
    return _shape(options, "qwen3_moe") | {
        "attention_bias": False,
        "use_sliding_window": False,
        "num_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "moe_intermediate_size": options["moe_mlp_dim"],
        "norm_topk_prob": True,  # MaxText takes a softmax over those chosen
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }


def _gemma(options: Options) -> Config:
    return _shape(options, "gemma")


def _gemma2(options: Options) -> Config:
    shape = _shape(options, "gemma2")
    return shape | {
        "num_hidden_layers": 2 * options["num_decoder_layers"],
        "hidden_activation": shape["hidden_act"],
        "sliding_window": options["sliding_window_size"],
        "query_pre_attn_scalar": options["head_dim"],
        "attn_logit_softcapping": options["attn_logits_soft_cap"],
        "final_logit_softcapping": options["final_logits_soft_cap"],
    }


def _gemma3(options: Options) -> Config:
    shape = _shape(options, "gemma3_text")
    local = options["local_rope_max_timescale"]
    local = local if local > 0 else options["rope_max_timescale"]
    return shape | {
        "hidden_activation": shape["hidden_act"],
        "sliding_window": options["sliding_window_size"],
        "query_pre_attn_scalar": round(maxtext_form(options).query ** -2),
        "final_logit_softcapping": options["final_logits_soft_cap"],
        "rope_parameters": {
            "full_attention": shape["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": float(local)},
        },
    }


def _gpt_oss(options: Options) -> Config:
    shape = _shape({**options, "mlp_activations": ["silu", "linear"]}, "gpt_oss")
    return shape | {
        "sliding_window": options["sliding_window_size"],
        "num_local_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "attention_bias": options["attention_bias"],
        "swiglu_limit": options["mlp_activations_limit"],
    }


def _gpt3(options: Options) -> Config:
    only(options, "mlp_activations", ["gelu"])
    return {
        "model_type": "gpt2",
        "n_embd": options["emb_dim"],
        "n_layer": options["num_decoder_layers"],
        "n_head": options["num_query_heads"],
        "n_inner": options["mlp_dim"],
        "vocab_size": options["vocab_size"],
        "n_positions": options["trainable_position_size"],
        "layer_norm_epsilon": options["normalization_layer_epsilon"],
        "tie_word_embeddings": options["logits_via_embedding"],
        "activation_function": "gelu_new",
    }


def _deepseek(options: Options) -> Config:
    only(options, "attention_type", "mla")
    third = _is_third(options)
    only(options, "routed_score_func", "sigmoid" if third else "softmax")
    rope = _rope(options)
    if options["max_position_embeddings"] > options["original_max_position_embeddings"]:
        rope["mscale_all_dim"] = options["mscale"]
    shape = _shape(options, "deepseek_v3" if third else "deepseek_v2") | {
        "num_key_value_heads": options["num_query_heads"],
        "rope_parameters": rope,
        "first_k_dense_replace": options["first_num_dense_layers"],
        "q_lora_rank": options["q_lora_rank"] or None,
        "kv_lora_rank": options["kv_lora_rank"],
        "qk_nope_head_dim": options["qk_nope_head_dim"],
        "qk_rope_head_dim": options["qk_rope_head_dim"],
        "v_head_dim": options["v_head_dim"],
        "n_routed_experts": options["num_experts"],
        "n_shared_experts": options["shared_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "moe_intermediate_size": options["moe_mlp_dim"],
        "routed_scaling_factor": options["routed_scaling_factor"],
    }
    if not third:
        return shape | {"topk_method": "greedy"}
    grouped = options["n_routing_groups"] > 0
    return shape | {
        "rope_interleave": turn_of(options) == "pairs",
        "n_group": options["n_routing_groups"] if grouped else 1,
        "topk_group": options["topk_routing_group"] if grouped else 1,
        "norm_topk_prob": True,
    }


def _is_third(options: Options) -> bool:
    """Says whether experts are chosen as in DeepSeek-V3: the name tells."""
    names = ("deepseek3",)
    if version_of(options) >= (0, 2, 5):
        names += ("kimi-k2",)
    return options["model_name"].startswith(names)


_FAMILIES: dict[str, Callable[[Options], Config]] = {
    "llama2": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "deepseek": _deepseek,
    "gpt3": _gpt3,
    "gpt_oss": _gpt_oss,
}


def options_from_hf(config: Config) -> dict[str, Any] | None:
    """Returns the options of MaxText that describe a normalised config.json.

    None if MaxText has no such decoder.
    """
    kind = config["model_type"]
    if kind == "gpt2":
        return _gpt3_from_hf(config)
    if kind not in _BLOCKS:
        return None
    rope = config["rope_parameters"]
    return {
        "decoder_block": _BLOCKS[kind],
        "emb_dim": config["hidden_size"],
        "num_decoder_layers": config["num_hidden_layers"],
        "num_query_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "mlp_dim": config.get("intermediate_size", 1),
        "vocab_size": config["vocab_size"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "normalize_embedding_logits": kind.startswith("gemma"),
        "normalization_layer_epsilon": config["rms_norm_eps"],
        "mlp_activations": [_activation_from_hf(config), "linear"],
        **_rope_from_hf(rope.get("full_attention", rope)),
        **_MORE.get(kind, lambda config: {})(config),
    }


def _activation_from_hf(config: Config) -> str:
    name = config.get("hidden_activation") or config["hidden_act"]
    return "gelu" if name == "gelu_pytorch_tanh" else name


def _rope_from_hf(rope: Config) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_max_timescale": int(rope["rope_theta"])}
    match rope["rope_type"]:
        case "llama3":
            return {**written, "rope_type": "llama3.1"}
        case "linear":
            return {**written, "rope_linear_scaling_factor": rope["factor"]}
        case "yarn":
            return {
                **written,
                "rope_type": "yarn",
                "rope_factor": int(rope["factor"]),
                "original_max_position_embeddings": rope[
                    "original_max_position_embeddings"
                ],
                "beta_fast": int(rope["beta_fast"]),
                "beta_slow": int(rope["beta_slow"]),
                "rope_truncate": rope["truncate"],
                "rope_attention_scaling": rope["attention_factor"] != 1.0,
            }
    return written


def _mixtral_from_hf(config: Config) -> dict[str, Any]:
    return {
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_mlp_dim": config["intermediate_size"],
    }


def _qwen3_moe_from_hf(config: Config) -> dict[str, Any]:
    return {
        "use_qk_norm": True,
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_mlp_dim": config["moe_intermediate_size"],
        "norm_topk_prob": True,
    }


def _gemma2_from_hf(config: Config) -> dict[str, Any]:
    return {
        "num_decoder_layers": config["num_hidden_layers"] // 2,
        "sliding_window_size": config["sliding_window"],
        "attn_logits_soft_cap": config["attn_logit_softcapping"],
        "final_logits_soft_cap": config["final_logit_softcapping"],
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
    }


def _gemma3_from_hf(config: Config) -> dict[str, Any]:
    per_head = config["query_pre_attn_scalar"] == config["head_dim"]
    local = config["rope_parameters"]["sliding_attention"]
    return {
        "model_name": "gemma3-4b" if per_head else "gemma3-27b",
        "sliding_window_size": config["sliding_window"] or 0,
        "local_rope_max_timescale": int(local["rope_theta"]),
        "final_logits_soft_cap": config["final_logit_softcapping"],
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
    }


def _gpt_oss_from_hf(config: Config) -> dict[str, Any]:
    return {
        "sliding_window_size": config["sliding_window"],
        "mlp_activations": ["sigmoid", "linear"],
        "mlp_activations_limit": config["swiglu_limit"],
        "mlp_bias": True,
        "routed_bias": True,
        "attention_bias": config["attention_bias"],
        "attention_sink": True,
        "rope_interleave": False,
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "inhomogeneous_layer_cycle_interval": 2,
    }


def _deepseek_from_hf(config: Config) -> dict[str, Any]:
    third = config["model_type"] == "deepseek_v3"
    rope = config["rope_parameters"]
    grown = rope.get("mscale_all_dim")
    original = rope.get("original_max_position_embeddings", 4096)
    written = {
        "model_name": "deepseek3-tiny" if third else "deepseek2-16b",
        "attention_type": "mla",
        "first_num_dense_layers": config["first_k_dense_replace"],
        "q_lora_rank": config["q_lora_rank"] or 0,
        "kv_lora_rank": config["kv_lora_rank"],
        "qk_nope_head_dim": config["qk_nope_head_dim"],
        "qk_rope_head_dim": config["qk_rope_head_dim"],
        "v_head_dim": config["v_head_dim"],
        "mscale": grown or 1.0,
        # The scale of scores grows only where documents may be longer than they were.
        "max_position_embeddings": 40 * original if grown else original,
        "num_experts": config.get("n_routed_experts", 1),
        "num_experts_per_tok": config["num_experts_per_tok"],
        "shared_experts": config["n_shared_experts"],
        "moe_mlp_dim": config["moe_intermediate_size"],
        "routed_scaling_factor": config["routed_scaling_factor"],
        "routed_score_func": "sigmoid" if third else "softmax",
        "routed_bias": third,
    }
    if third and config["n_group"] > 1:
        written["n_routing_groups"] = config["n_group"]
        written["topk_routing_group"] = config["topk_group"]
    return written


def _gpt3_from_hf(config: Config) -> dict[str, Any]:
    return {
        "decoder_block": "gpt3",
        "emb_dim": config["n_embd"],
        "num_decoder_layers": config["n_layer"],
        "num_query_heads": config["n_head"],
        "num_kv_heads": config["n_head"],
        "head_dim": config["n_embd"] // config["n_head"],
        "mlp_dim": config["n_inner"],
        "vocab_size": config["vocab_size"],
        "trainable_position_size": config["n_positions"],
        "max_target_length": config["n_positions"],
        "normalization_layer_epsilon": config["layer_norm_epsilon"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "normalize_embedding_logits": False,
        "mlp_activations": ["gelu"],
        "fused_qkv": True,
    }


_BLOCKS = {
    "llama": "llama2",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "deepseek_v2": "deepseek",
    "deepseek_v3": "deepseek",
    "gpt_oss": "gpt_oss",
}
_MORE: dict[str, Callable[[Config], dict[str, Any]]] = {
    "mixtral": _mixtral_from_hf,
    "qwen2": lambda config: {"attention_bias": True},
    "qwen3": lambda config: {"use_qk_norm": True},
    "qwen3_moe": _qwen3_moe_from_hf,
    "gemma2": _gemma2_from_hf,
    "gemma3_text": _gemma3_from_hf,
    "gpt_oss": _gpt_oss_from_hf,
    "deepseek_v2": _deepseek_from_hf,
    "deepseek_v3": _deepseek_from_hf,
}


def model_types_of(block: str) -> list[str]:
    """Returns the model types of config.json that a `decoder_block` stands for."""
    if block == "gpt3":
        return ["gpt2"]
    return [kind for kind, own in _BLOCKS.items() if own == block]
