"""The options of MaxText that tell what a checkpoint holds and how it was trained."""

from collections.abc import Mapping
from typing import Any

from maxfdl.errors import UserError
from maxfdl.outside import Values

Options = Mapping[str, Any]

DEFAULTS: dict[str, Any] = {
    # The network.
    "model_name": "default",
    "decoder_block": "llama2",
    "vocab_size": 32_000,
    "head_dim": 128,
    "mlp_activations": ["silu", "linear"],
    "mlp_activations_limit": -1.0,
    "mlp_bias": False,
    "fused_qkv": False,
    "fused_mlp": False,
    "normalization_layer_epsilon": 1e-5,
    "attention_type": "global",
    "attention_bias": False,
    "attention_sink": False,
    "use_qk_norm": False,
    "attn_logits_soft_cap": None,
    "sliding_window_size": 0,
    "use_post_attn_norm": False,
    "use_post_ffw_norm": False,
    "logits_via_embedding": False,
    "normalize_embedding_logits": True,
    "final_logits_soft_cap": None,
    "trainable_position_size": -1,
    "rope_type": "default",
    "rope_use_scale": True,
    "rope_max_timescale": 10_000,
    "rope_linear_scaling_factor": 1.0,
    "local_rope_max_timescale": -1,
    "max_position_embeddings": 163_840,
    "original_max_position_embeddings": 4096,
    "rope_factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "rope_interleave": True,
    "rope_truncate": True,
    "rope_attention_scaling": False,
    "q_lora_rank": 0,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts": 1,
    "num_experts_per_tok": 1,
    "shared_experts": 0,
    "first_num_dense_layers": 0,
    "routed_scaling_factor": 1.0,
    "routed_score_func": "",
    "routed_bias": False,
    "routed_bias_update_rate": 0.0,
    "n_routing_groups": -1,
    "topk_routing_group": -1,
    "norm_topk_prob": False,
    "inhomogeneous_layer_cycle_interval": 1,
    "nope_layer_interval": -1,
    "interleave_moe_layer_step": 1,
    "temperature_tuning": False,
    "chunk_attn_window_size": 0,
    "partial_rotary_factor": 1.0,
    "gdn_conv_kernel_dim": 4,
    "gdn_key_head_dim": 128,
    "gdn_value_head_dim": 128,
    "gdn_num_key_heads": 16,
    "gdn_num_value_heads": 32,
    # Parts of a network that are refused unless they are as here: see `check_network`.
    "rope_min_timescale": 1,
    "use_untrainable_positional_embedding": False,
    "share_kv_projections": False,
    "use_indexer": False,
    "mhc_expansion_rate": 1,
    "engram_layers": [],
    "mtp_num_layers": 0,
    "use_multimodal": False,
    "use_random_routing": False,
    "capacity_factor": -1.0,
    "sparse_matmul": True,
    # Layout.
    "ici_pipeline_parallelism": 1,
    "dcn_pipeline_parallelism": 1,
    "scan_layers": True,
    "param_scan_axis": 1,
    "dtype": "bfloat16",
    "weight_dtype": "float32",
    "mu_dtype": "",
    # Training.
    "max_target_length": 2048,
    "global_batch_size_to_train_on": 8,
    "gradient_accumulation_steps": 1,
    "gradient_clipping_threshold": 1.0,
    "z_loss_multiplier": 0.0,
    "load_balance_loss_weight": 0.0,
    "opt_type": "adamw",
    "adam_b1": 0.9,
    "adam_b2": 0.95,
    "adam_eps": 1e-8,
    "adam_eps_root": 0.0,
    "adam_weight_decay": 0.1,
    "adamw_mask": [],
    "muon_beta": 0.95,
    "muon_weight_decay": 0.0,
    "muon_consistent_rms": None,
    "muon_type": "optax_muon",
    "muon_include_routers": True,
    "skip_step_on_spikes": False,
    "trainable_parameters_mask": [],
    "enable_dropout": True,
    "dropout_rate": 0.0,
    "learning_rate": 3e-5,
    "lr_schedule_type": "cosine",
    "learning_rate_final_fraction": 0.1,
    "warmup_steps_fraction": 0.1,
    "wsd_decay_steps_fraction": 0.1,
    "wsd_decay_style": "linear",
    "learning_rate_schedule_steps": -1,
    "steps": 150_001,
    "init_weights_seed": 0,
    "pure_nnx": False,  # of versions that have Linen, too
    # Ours: which MaxText it was, since 0.2.4 and 0.2.5 weigh load balance differently.
    "maxtext": "0.2.5",
}
"""Those of MaxText's `base.yml`, as far as they are read here."""

_SCALED = {
    "emb_dim": 2048,
    "num_query_heads": 16,
    "num_kv_heads": 16,
    "mlp_dim": 7168,
    "moe_mlp_dim": -1,
    "num_decoder_layers": 16,
}
"""Sizes that MaxText derives from `base_` options, and the defaults of these."""


def resolved(given: Mapping[str, Any], file: str) -> Options:
    """Returns all options of a config: those given, and MaxText's defaults.

    A config.json may keep the options under `resolved`, beside the version. Sizes may
    be given before scaling, as `base_emb_dim` and the like.

    Raises:
      UserError: If one has a value of another kind than its default.
    """
    outer = Values(file, given)
    inner = outer.within("resolved") if "resolved" in given else outer
    options = {**DEFAULTS}
    for name, default in DEFAULTS.items():
        if name in inner.content:
            options[name] = _checked(inner, name, default)
    for name, default in _SCALED.items():
        base = inner.content.get(f"base_{name}", default)
        options[name] = _checked(Values(file, {name: base}), name, default)
        if inner.content.get(name) is not None:
            options[name] = _checked(inner, name, default)
    if "maxtext" in given:
        options["maxtext"] = str(given["maxtext"])
    if "scan_layers" not in inner.content:
        options["scan_layers"] = None  # the names in the checkpoint tell
    if options["learning_rate_schedule_steps"] < 0:
        options["learning_rate_schedule_steps"] = options["steps"]
    return options


def _checked(values: Values, name: str, default: Any) -> Any:
    value = values.content[name]
    if default is None or value is None:
        return value or None  # MaxText's caps are off at 0 and at None
    if isinstance(default, float) and isinstance(value, int):
        return float(value)
    fits = isinstance(value, type(default)) and (
        isinstance(default, bool) == isinstance(value, bool)
    )
    if not fits and not (isinstance(default, int) and isinstance(value, float)):
        raise values.wrong(
            f"{name} ({value!r}) must be of type {type(default).__name__}, as in"
            " MaxText's base.yml"
        )
    return value


def version_of(options: Options) -> tuple[int, ...]:
    """Returns the version of MaxText that ran, such as (0, 2, 5)."""
    parts = str(options["maxtext"]).split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


def only(options: Options, name: str, *allowed: Any, hint: str = "") -> None:
    """Refuses a value that no graph here can have; `hint` ends the sentence.

    Raises:
      UserError: If the option has another value than those allowed.
    """
    if options[name] not in allowed:
        known = " or ".join(map(repr, allowed))
        raise UserError(
            f"MaxText's {name} ({options[name]!r}) must be {known}: nothing here"
            f" computes it otherwise{hint}."
        )


_OFF: Mapping[str, tuple[Any, ...]] = {
    "rope_min_timescale": (1,),
    "use_untrainable_positional_embedding": (False,),
    "share_kv_projections": (False,),
    "use_indexer": (False,),
    "mhc_expansion_rate": (0, 1),
    "engram_layers": ([],),
    "mtp_num_layers": (0,),
    "use_multimodal": (False,),
    "use_random_routing": (False,),
    "ici_pipeline_parallelism": (1, -1),
    "dcn_pipeline_parallelism": (1, -1),
}
"""What a network of MaxText may have and none here has, and the values without it."""

_UNTRAINED: Mapping[str, tuple[Any, ...]] = {
    "adam_eps_root": (0.0,),
    "muon_type": ("optax_muon",),
    "muon_include_routers": (True,),
    "skip_step_on_spikes": (False,),
    "trainable_parameters_mask": ([],),
}
"""How MaxText may train and nothing here does, and the values without it."""


def check_network(options: Options) -> None:
    """Refuses options of a network that no graph here computes.

    Raises:
      UserError: Naming the first option of them.
    """
    for name, allowed in _OFF.items():
        only(options, name, *allowed)
    if options["num_experts"] > 1 and not options["sparse_matmul"]:
        only(options, "capacity_factor", -1.0)  # else tokens are dropped


def check_training(options: Options) -> None:
    """Refuses options of training that no graph here follows.

    Raises:
      UserError: Naming the first option of them.
    """
    hint = "; to train on without it, change it in the file of MaxText's options"
    for name, allowed in _UNTRAINED.items():
        only(options, name, *allowed, hint=hint)
    if options["enable_dropout"]:
        only(options, "dropout_rate", 0.0, hint=hint)
