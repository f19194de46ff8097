"""Decoders with experts: MaxText's options as a config.json, and back."""

from typing import Any

from fdl_configs.maxtext_families.parts import (
    check_cycle,
    options_of_shape,
    rope_parameters,
    shape,
)
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.form import turn_of
from maxfdl.tensors.maxtext.options import Options, only, version_of


def mixtral(options: Options) -> Config:
    return shape(options, "mixtral") | {
        "num_local_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "sliding_window": None,
    }


def qwen3_moe(options: Options) -> Config:
    only(options, "use_qk_norm", True)
    return shape(options, "qwen3_moe") | {
        "attention_bias": False,
        "use_sliding_window": False,
        "num_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "moe_intermediate_size": options["moe_mlp_dim"],
        "norm_topk_prob": True,  # MaxText takes a softmax over those chosen
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }


def gpt_oss(options: Options) -> Config:
    check_cycle(options, 2)  # a layer with a window, and one without
    widths = shape({**options, "mlp_activations": ["silu", "linear"]}, "gpt_oss")
    return widths | {
        "sliding_window": options["sliding_window_size"],
        "num_local_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "attention_bias": options["attention_bias"],
        "swiglu_limit": options["mlp_activations_limit"],
    }


def deepseek(options: Options) -> Config:
    only(options, "attention_type", "mla")
    third = _is_third(options)
    only(options, "routed_score_func", "sigmoid" if third else "softmax")
    rope = rope_parameters(options)
    if options["max_position_embeddings"] > options["original_max_position_embeddings"]:
        rope["mscale_all_dim"] = options["mscale"]
    widths = shape(options, "deepseek_v3" if third else "deepseek_v2") | {
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
        return widths | {"topk_method": "greedy"}
    grouped = options["n_routing_groups"] > 0
    return widths | {
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


def mixtral_options(config: Config) -> dict[str, Any]:
    return options_of_shape(config, "mixtral") | {
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_mlp_dim": config["intermediate_size"],
    }


def qwen3_moe_options(config: Config) -> dict[str, Any]:
    return options_of_shape(config, "qwen3_moe") | {
        "use_qk_norm": True,
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_mlp_dim": config["moe_intermediate_size"],
        "norm_topk_prob": True,
    }


def gpt_oss_options(config: Config) -> dict[str, Any]:
    return options_of_shape(config, "gpt_oss") | {
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


def deepseek_options(config: Config) -> dict[str, Any]:
    third = config["model_type"] == "deepseek_v3"
    rope = config["rope_parameters"]
    grown = rope.get("mscale_all_dim")
    original = rope.get("original_max_position_embeddings", 4096)
    written = options_of_shape(config, "deepseek") | {
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
