"""What most families share: MaxText's options as keys of config.json, and back."""

from typing import Any

from maxfdl.errors import UserError
from maxfdl.ops.rope import yarn_magnitude
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.form import is_llama3_rope
from maxfdl.tensors.maxtext.options import Options


def shape(options: Options, model_type: str) -> Config:
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
        "rope_parameters": rope_parameters(options),
    }


def _activation(name: str) -> str:
    # Flax's gelu, which MaxText takes, is the approximation by tanh.
    return "gelu_pytorch_tanh" if name == "gelu" else name


def rope_parameters(options: Options) -> Config:
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


def options_of_shape(config: Config, block: str) -> dict[str, Any]:
    """Returns the options of what the config.json of most families has in common."""
    rope = config["rope_parameters"]
    return {
        "decoder_block": block,
        "emb_dim": config["hidden_size"],
        "num_decoder_layers": config["num_hidden_layers"],
        "num_query_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "mlp_dim": config.get("intermediate_size", 1),
        "vocab_size": config["vocab_size"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "normalize_embedding_logits": block.startswith("gemma"),
        "normalization_layer_epsilon": config["rms_norm_eps"],
        "mlp_activations": [_activation_from_hf(config), "linear"],
        **_rope_from_hf(rope.get("full_attention", rope)),
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


def check_cycle(options: Options, cycle: int) -> None:
    """Refuses blocks of scanned layers that do not hold whole cycles of their kinds.

    Raises:
      UserError: If kinds of layers come in turn otherwise than in unscanned ones.
    """
    name = "inhomogeneous_layer_cycle_interval"
    if options["scan_layers"] is not False and options[name] % cycle:
        raise UserError(
            f"MaxText's {name} ({options[name]}) must be a multiple of {cycle}, the"
            f" cycle of {options['decoder_block']}'s layers, where these are scanned."
        )
