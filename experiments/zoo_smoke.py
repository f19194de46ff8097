"""Every family of models, tiny: what changes a trajectory here changed a family."""

from typing import Any

import fiddle as fdl

from fdl_configs import data, optimizers
from fdl_configs.families import family_of
from fdl_configs.models.gpt3 import gpt3_52k
from fdl_configs.runs import pretrain
from maxfdl.errors import UserError, did_you_mean
from maxfdl.experiment import Experiment
from maxfdl.mutations import router_losses, selection_bias
from maxfdl.tensors.hugging_face.config import normalised


def experiment(family: str = "llama2") -> fdl.Config[Experiment]:
    """Trains five float32 steps on packed ragged documents, and logs every one.

    Routers have all their auxiliary losses, and biases where they have such.
    """
    known = [*_MODELS, "gpt3"]
    if family not in known:
        raise UserError(
            f"zoo_smoke has no family {family!r}.{did_you_mean(family, known)} It must"
            f" be one of {', '.join(known)}."
        )
    config = pretrain(
        name=f"zoo_smoke_{family}",
        model=gpt3_52k() if family == "gpt3" else _of_config(family),
        data=data.synthetic(),
        optimizer=optimizers.adamw(peak=1e-3, warmup_steps=2),
        steps=5,
        batch_size=8,
        sequence_length=32,
    )
    config.data.documents_per_row = 3
    config.trainer.log_every = 1
    config.trainer.eval_batches = 1
    config.checkpoint = None
    if "num_experts_per_tok" in _MODELS.get(family, ()):
        config = router_losses(
            config, sequence_balance=1e-2, batch_balance=1e-2, z=1e-3
        )
    if family in _WITH_SELECTION_BIAS:
        config = selection_bias(config, rate=1e-2)
    return config


def _of_config(family: str) -> fdl.Partial:
    described = normalised(_WIDTHS | _MODELS[family])
    return family_of(described["model_type"]).from_hf(described)


_WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "tie_word_embeddings": False,
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_WINDOW: dict[str, Any] = {"sliding_window": 6}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED = _EXPERTS | {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.0,
    "n_group": 4,
    "topk_group": 2,
}
_LOCAL_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "num_local_experts": 4}

_MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama2": {"model_type": "llama"},
    "llama3": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {"model_type": "mistral"} | _WINDOW,
    "mixtral": {"model_type": "mixtral"} | _LOCAL_EXPERTS,
    "gemma": {"model_type": "gemma", "num_key_value_heads": 1},
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "layer_types": [_LOCAL, _GLOBAL] * 2,
    }
    | _WINDOW,
    "gemma3": {
        "model_type": "gemma3_text",
        "query_pre_attn_scalar": 12,
        "num_hidden_layers": 7,
        "layer_types": [*([_LOCAL] * 5), _GLOBAL, _LOCAL],
        "rope_parameters": {
            _LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
            _GLOBAL: {"rope_type": "linear", "rope_theta": 100_000.0, "factor": 4.0},
        },
    }
    | _WINDOW,
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 8, "norm_topk_prob": True}
    | _EXPERTS,
    "qwen3_next": {
        "model_type": "qwen3_next",
        "layer_types": [*(["linear_attention"] * 3), _GLOBAL],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
        "num_experts": 8,
        "norm_topk_prob": True,
        "shared_expert_intermediate_size": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
    }
    | _EXPERTS,
    "deepseek_v2": {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy"}
    | _LATENT
    | _ROUTED,
    "deepseek_v2_lite": {"model_type": "deepseek_v2", "topk_method": "greedy"}
    | _LATENT
    | _ROUTED
    | {"q_lora_rank": None, "n_group": None, "topk_group": None},
    "deepseek_v3": {"model_type": "deepseek_v3", "norm_topk_prob": True}
    | _LATENT
    | _ROUTED,
    "kimi_k2": {"model_type": "deepseek_v3", "norm_topk_prob": True}
    | _LATENT
    | _ROUTED
    | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827},
    "gpt_oss": {
        "model_type": "gpt_oss",
        "layer_types": [_LOCAL, _GLOBAL] * 2,
        "intermediate_size": 16,
        "rope_parameters": _YARN | {"truncate": False},
    }
    | _WINDOW
    | _LOCAL_EXPERTS,
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {
        "model_type": "olmo3",
        "layer_types": [*([_LOCAL] * 3), _GLOBAL],
        "rope_parameters": {
            _LOCAL: {"rope_type": "default", "rope_theta": 1000.0},
            _GLOBAL: _YARN,
        },
    }
    | _WINDOW,
    "llama4": {
        "model_type": "llama4_text",
        "layer_types": [*(["chunked_attention"] * 3), _GLOBAL],
        "no_rope_layers": [1, 1, 1, 0],
        "attention_chunk_size": 6,
        "interleave_moe_layer_step": 2,
        "moe_layers": [1, 3],
        "intermediate_size": 16,
        "intermediate_size_mlp": 48,
        "num_experts_per_tok": 1,
        "num_local_experts": 4,
        "attn_temperature_tuning": True,
        "attn_scale": 0.1,
        "floor_scale": 8,
        "use_qk_norm": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 32,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 64,
        "tie_word_embeddings": True,
    },
    "glm4_moe": {
        "model_type": "glm4_moe",
        "attention_bias": True,
        "use_qk_norm": True,
        "norm_topk_prob": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
        },
    }
    | _ROUTED,
    "phi3": {"model_type": "phi3"} | _WINDOW,
    "phi4_mini": {
        "model_type": "phi3",
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 16,
            "short_factor": [1.0, 1.1],
            "long_factor": [1.5, 3.0],
        },
    },
    "cohere2": {
        "model_type": "cohere2",
        "layer_types": [*([_LOCAL] * 3), _GLOBAL],
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.25,
        "tie_word_embeddings": True,
    }
    | _WINDOW,
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]},
}
_WITH_SELECTION_BIAS = ("deepseek_v3", "kimi_k2", "glm4_moe")
