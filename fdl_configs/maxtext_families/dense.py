"""Decoders without experts: MaxText's options as a config.json, and back."""

from typing import Any

from fdl_configs.maxtext_families.parts import (
    check_cycle,
    options_of_shape,
    rope_parameters,
    shape,
)
from maxfdl.errors import UserError
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.form import maxtext_form
from maxfdl.tensors.maxtext.options import Options, only


def llama(options: Options) -> Config:
    only(options, "sliding_window_size", 0)
    return shape(options, "llama")


def mistral(options: Options) -> Config:
    return shape(options, "mistral") | {"sliding_window": None}


def qwen2(options: Options) -> Config:
    only(options, "attention_bias", True)
    return shape(options, "qwen2") | {"use_sliding_window": False}


def qwen3(options: Options) -> Config:
    only(options, "use_qk_norm", True)
    return shape(options, "qwen3") | {
        "attention_bias": False,
        "use_sliding_window": False,
    }


def gemma(options: Options) -> Config:
    return shape(options, "gemma")


def gemma2(options: Options) -> Config:
    widths = shape(options, "gemma2")
    return widths | {
        "num_hidden_layers": 2 * options["num_decoder_layers"],
        "hidden_activation": widths["hidden_act"],
        "sliding_window": options["sliding_window_size"],
        "query_pre_attn_scalar": options["head_dim"],
        "attn_logit_softcapping": options["attn_logits_soft_cap"],
        "final_logit_softcapping": options["final_logits_soft_cap"],
    }


def gemma3(options: Options) -> Config:
    widths = shape(options, "gemma3_text")
    local = options["local_rope_max_timescale"]
    local = local if local > 0 else options["rope_max_timescale"]
    return widths | {
        "hidden_activation": widths["hidden_act"],
        "sliding_window": options["sliding_window_size"],
        "query_pre_attn_scalar": round(maxtext_form(options).query ** -2),
        "final_logit_softcapping": options["final_logits_soft_cap"],
        "rope_parameters": {
            "full_attention": widths["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": float(local)},
        },
    }


def gpt3(options: Options) -> Config:
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


def gemma2_options(config: Config) -> dict[str, Any]:
    return options_of_shape(config, "gemma2") | {
        "num_decoder_layers": config["num_hidden_layers"] // 2,
        "sliding_window_size": config["sliding_window"],
        "attn_logits_soft_cap": config["attn_logit_softcapping"],
        "final_logits_soft_cap": config["final_logit_softcapping"],
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
    }


def gemma3_options(config: Config) -> dict[str, Any]:
    per_head = config["query_pre_attn_scalar"] == config["head_dim"]
    local = config["rope_parameters"]["sliding_attention"]
    return options_of_shape(config, "gemma3") | {
        "model_name": "gemma3-4b" if per_head else "gemma3-27b",
        "sliding_window_size": config["sliding_window"] or 0,
        "local_rope_max_timescale": int(local["rope_theta"]),
        "final_logits_soft_cap": config["final_logit_softcapping"],
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
    }


def gpt3_options(config: Config) -> dict[str, Any]:
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


def plain_options(block: str, **more: Any) -> Any:
    """Returns what makes options of a config.json that has nothing but its shape."""
    return lambda config: options_of_shape(config, block) | more


_OLMO3_CYCLE = 4  # three layers with a window, and one without


def olmo3(options: Options) -> Config:
    only(options, "use_qk_norm", True)
    if not options["model_name"].startswith("olmo3"):
        raise UserError(
            f"MaxText's model_name ({options['model_name']}) must begin with olmo3 for"
            " decoder_block olmo3: else it normalises queries and keys head by head."
        )
    check_cycle(options, _OLMO3_CYCLE)
    rope = rope_parameters(options)  # of all layers, unlike the published one
    numbers = range(1, options["num_decoder_layers"] + 1)
    return shape(options, "olmo3") | {
        "sliding_window": options["sliding_window_size"],
        "layer_types": [
            "sliding_attention" if i % _OLMO3_CYCLE else "full_attention"
            for i in numbers
        ],
        "rope_parameters": {"full_attention": rope, "sliding_attention": rope},
        "attention_bias": options["attention_bias"],
    }


def olmo3_options(config: Config) -> dict[str, Any]:
    return options_of_shape(config, "olmo3") | {
        "model_name": "olmo3-7b",
        "use_qk_norm": True,
        "rope_interleave": False,
        "sliding_window_size": config["sliding_window"] or 0,
        "attention_bias": config["attention_bias"],
        "inhomogeneous_layer_cycle_interval": _OLMO3_CYCLE,
    }
