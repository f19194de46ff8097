"""Decoders with experts in which kinds of layers come in turn: Llama 4, Qwen3-Next."""

import math
from typing import Any

from fdl_configs.maxtext_families.parts import (
    check_cycle,
    options_of_shape,
    rope_parameters,
    shape,
)
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.options import Options, only

_TEMPERATURE, _FLOOR = 0.1, 8192  # fixed in MaxText's layer


def llama4(options: Options) -> Config:
    only(options, "shared_experts", 1)
    nope, moe = options["nope_layer_interval"], options["interleave_moe_layer_step"]
    check_cycle(options, math.lcm(max(nope, 1), max(moe, 1)))
    count = options["num_decoder_layers"]
    turns = [nope <= 0 or number % nope != 0 for number in range(1, count + 1)]
    chunked = {True: "chunked_attention", False: "full_attention"}
    return shape(options, "llama4_text") | {
        "intermediate_size": options["moe_mlp_dim"],
        "intermediate_size_mlp": options["mlp_dim"],
        "num_local_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "moe_layers": [i for i in range(count) if moe > 0 and (i + 1) % moe == 0],
        "no_rope_layers": [int(each) for each in turns],
        "layer_types": [chunked[each] for each in turns],
        "attention_chunk_size": options["chunk_attn_window_size"] or None,
        "use_qk_norm": options["use_qk_norm"],
        "attn_temperature_tuning": options["temperature_tuning"],
        "attn_scale": _TEMPERATURE,
        "floor_scale": _FLOOR,
    }


def llama4_options(config: Config) -> dict[str, Any]:
    nope = next((i for i, x in enumerate(config["no_rope_layers"], 1) if not x), -1)
    moe = config["moe_layers"][0] + 1 if config["moe_layers"] else -1
    return options_of_shape(config, "llama4") | {
        "mlp_dim": config["intermediate_size_mlp"],
        "moe_mlp_dim": config["intermediate_size"],
        "num_experts": config["num_local_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "shared_experts": 1,
        "nope_layer_interval": nope,
        "interleave_moe_layer_step": moe,
        "inhomogeneous_layer_cycle_interval": math.lcm(max(nope, 1), max(moe, 1)),
        "chunk_attn_window_size": config["attention_chunk_size"] or 0,
        "use_qk_norm": config["use_qk_norm"],
        "temperature_tuning": config["attn_temperature_tuning"],
        **_rope_of_llama4(config["rope_parameters"]),
    }


def _rope_of_llama4(rope: Config) -> dict[str, Any]:
    # Features that turn together are side by side, as in MaxText's Llama 3.1 alone.
    scaled = rope["rope_type"] == "llama3"
    return {"rope_type": "llama3.1", "rope_use_scale": scaled}


def qwen3_next(options: Options) -> Config:
    only(options, "shared_experts", 1)
    cycle = options["inhomogeneous_layer_cycle_interval"]
    fraction = {"partial_rotary_factor": options["partial_rotary_factor"]}
    numbers = range(1, options["num_decoder_layers"] + 1)
    return shape(options, "qwen3_next") | {
        "layer_types": [
            "linear_attention" if number % cycle else "full_attention"
            for number in numbers
        ],
        "rope_parameters": rope_parameters(options) | fraction,
        "linear_conv_kernel_dim": options["gdn_conv_kernel_dim"],
        "linear_key_head_dim": options["gdn_key_head_dim"],
        "linear_value_head_dim": options["gdn_value_head_dim"],
        "linear_num_key_heads": options["gdn_num_key_heads"],
        "linear_num_value_heads": options["gdn_num_value_heads"],
        "num_experts": options["num_experts"],
        "num_experts_per_tok": options["num_experts_per_tok"],
        "moe_intermediate_size": options["moe_mlp_dim"],
        "shared_expert_intermediate_size": options["moe_mlp_dim"],
        "norm_topk_prob": True,  # MaxText takes a softmax over those chosen
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
    }


def qwen3_next_options(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]
    full = "full_attention"
    kinds = config["layer_types"]
    return options_of_shape(config, "qwen3_next") | {
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
        "inhomogeneous_layer_cycle_interval": kinds.index(full) + 1
        if full in kinds
        else len(kinds) + 1,
        "gdn_conv_kernel_dim": config["linear_conv_kernel_dim"],
        "gdn_key_head_dim": config["linear_key_head_dim"],
        "gdn_value_head_dim": config["linear_value_head_dim"],
        "gdn_num_key_heads": config["linear_num_key_heads"],
        "gdn_num_value_heads": config["linear_num_value_heads"],
        "num_experts": config["num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "moe_mlp_dim": config["moe_intermediate_size"],
        "shared_experts": 1,
        "norm_topk_prob": True,
    }
