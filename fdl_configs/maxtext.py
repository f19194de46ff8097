"""Graphs of what MaxText's options describe.

The network is that of the family's config.json in MaxText's form: what MaxText keeps in
its weights is in ours, so that these stay bit for bit. See `maxfdl.tensors.maxtext`.
"""

from collections.abc import Callable
from typing import Any

import fiddle as fdl

from fdl_configs import data
from fdl_configs.families import family_of
from fdl_configs.maxtext_training import auxiliary, optimizer, updates
from fdl_configs.runs import pretrain
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.experiment import Experiment
from maxfdl.layers import nnx
from maxfdl.ops.rope import yarn_magnitude
from maxfdl.tensors.hugging_face.config import Config, normalised
from maxfdl.tensors.maxtext.folder import MaxTextFolder, read_options
from maxfdl.tensors.maxtext.form import is_llama3_rope, maxtext_form, turn_of
from maxfdl.tensors.maxtext.names import naming_of
from maxfdl.tensors.maxtext.options import Options, only

_RMS_EPSILON = 1e-6  # of the norms in Gemma's layers, whatever the options say


def fine_tuning(folder: str, options_file: str | None = None) -> fdl.Config[Experiment]:
    """Trains on from a checkpoint of MaxText, as MaxText would, on random tokens.

    The optimizer, its schedule and the loss are those of MaxText's options; give it
    data of your own. `init_from` begins with the weights; `resume_from` goes on with
    the optimizer's state and the step.

    Args:
      folder: The checkpoint, see `maxfdl.tensors.maxtext.folder`.
      options_file: MaxText's options in JSON or YAML, where there is no config.json
        beside the checkpoint.
    """
    given = None if options_file is None else read_options(options_file)
    found = MaxTextFolder(folder, given)
    run = experiment(found.options)
    run.init_from = str(found.path)
    return run


def experiment(options: Options) -> fdl.Config[Experiment]:
    """Trains what options describe, as they say."""
    only(options, "z_loss_multiplier", 0.0)
    run = pretrain(
        name=_name(options),
        model=network(options),
        data=data.synthetic(),
        optimizer=optimizer(options),
        steps=options["learning_rate_schedule_steps"],
        batch_size=options["global_batch_size_to_train_on"],
        sequence_length=options["max_target_length"],
    )
    run.model.dtype, run.model.param_dtype = options["dtype"], options["weight_dtype"]
    run.seed = options["init_weights_seed"]
    if terms := auxiliary(options, run.model):
        run.loss.auxiliary = terms
    if changes := updates(options):
        run.trainer.updates = changes
    return run


def network(options: Options) -> fdl.Partial:
    """Returns the network that options describe, in MaxText's form.

    Raises:
      UserError: If there is no such network here.
    """
    naming_of(options)  # says which decoders there are
    model = published_network(options)
    _in_maxtext_form(model, options)
    graph.validate(model)
    return model


def published_network(options: Options) -> fdl.Partial:
    """Returns the same network in the form of the family's published weights."""
    config = normalised(hugging_face(options), "MaxText's options")
    return family_of(config["model_type"]).from_hf(config)


def _name(options: Options) -> str:
    known = options["model_name"] != "default"
    return options["model_name"] if known else options["decoder_block"]


def _in_maxtext_form(model: Any, options: Options) -> None:
    """Moves into the weights of a network what MaxText keeps there."""
    form = maxtext_form(options)
    block, epsilon = options["decoder_block"], options["normalization_layer_epsilon"]
    _swap(model, nnx.ScaledEmbedding, nnx.Embedding)
    _swap(model, nnx.ZeroCentredRMSNorm, nnx.RMSNorm)
    if block == "gpt3":
        _swap(model, nnx.LayerNorm, nnx.ZeroCentredLayerNorm)
    if options["logits_via_embedding"]:
        model.head.scale, model.head.rounded = form.logits, "bfloat16"
    for stack in model.decoder.stacks:
        for layer in stack.layers:
            _layer_in_form(layer, form.query, options)
            if block.startswith("gemma"):
                _set_epsilon(layer, _RMS_EPSILON)
            elif block == "deepseek":
                _set_epsilon(layer.attention, epsilon)
    if block == "gemma3":
        _set_epsilon_of_head_norms(model, epsilon)


def _layer_in_form(layer: Any, query: float, options: Options) -> None:
    attention = layer.attention
    width = attention.__arguments__.get("head_dim")
    if width is None or query != width**-0.5:
        attention.attention.scale = query
    rope = attention.__arguments__.get("rope")
    if rope is not None:
        rope.layout = turn_of(options)
    if fdl.get_callable(layer.mlp) is nnx.MoE:
        layer.mlp.router.count_padding = True


def _swap(model: Any, old: type, new: type) -> None:
    for _, node in graph.iterate(model):
        if fdl.get_callable(node) is old:
            graph.swap(node, new)


def _set_epsilon(part: Any, epsilon: float) -> None:
    for _, node in graph.iterate(part):
        if fdl.get_callable(node) is nnx.RMSNorm:
            node.epsilon = epsilon


def _set_epsilon_of_head_norms(model: Any, epsilon: float) -> None:
    for _, node in graph.iterate(model):
        if fdl.get_callable(node) is nnx.PerHead:
            node.norm.epsilon = epsilon


def hugging_face(options: Options) -> Config:
    """Returns the config.json of the family that options describe.

    Raises:
      UserError: If an option says what no family here computes.
    """
    block = options["decoder_block"]
    return _FAMILIES[block](options)


def _shape(options: Options, model_type: str) -> Config:
    """Returns what the config.json of most families has in common."""
    activation, *linear = options["mlp_activations"]
    if linear != ["linear"]:
        raise UserError(
            f"MaxText's mlp_activations ({options['mlp_activations']}) must be one"
            " function and linear."
        )
    only(options, "rope_attention_scaling", False, options["rope_type"] == "yarn")
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
    third = options["model_name"].startswith("deepseek3")
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


_FAMILIES: dict[str, Callable[[Options], Config]] = {
    "default": _llama,
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
