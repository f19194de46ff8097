"""What the values in config.json may be, key by key.

The kinds are those that the configuration classes of transformers 5.24.0 declare,
within the range in which a network can be built. A whole number stands for the same
fraction.
"""

from maxfdl.layers.checks import MOST_LAYERS
from maxfdl.outside import (
    Choice,
    Flag,
    Integer,
    Kind,
    Listing,
    Number,
    Object,
    Text,
    Values,
)
from maxfdl.tensors.hugging_face.defaults import DEFAULTS, RENAMED

_SIZE = Integer(least=1)
_COUNT = Integer(least=0)
_EXPERTS = Integer(least=0, most=2**16)
_LAYERS = Integer(least=1, most=MOST_LAYERS)
_POSITIVE = Number(above=0)
_NOT_NEGATIVE = Number(least=0)
_FRACTION = Number(above=0, most=1)
_FLAG = Flag()
_DTYPE = Choice(("float32", "bfloat16", "float16", "float64"))
_BY_LAYER = Listing(_COUNT)

KINDS: dict[str, Kind] = {
    "_sliding_window_pattern": _SIZE,
    "activation_function": Text(),
    "add_cross_attention": _FLAG,
    "attention_bias": _FLAG,
    "attention_chunk_size": _SIZE,
    "attn_logit_softcapping": _POSITIVE,
    "attn_scale": Number(),
    "attn_temperature_tuning": _FLAG,
    "decoder_sparse_step": _SIZE,
    "dtype": _DTYPE,
    "final_logit_softcapping": _POSITIVE,
    "first_k_dense_replace": _COUNT,
    "floor_scale": _SIZE,
    "full_attention_interval": _SIZE,
    "head_dim": _SIZE,
    "hidden_act": Text(),
    "hidden_activation": Text(),
    "hidden_size": _SIZE,
    "interleave_moe_layer_step": _SIZE,
    "intermediate_size": _SIZE,
    "intermediate_size_mlp": _SIZE,
    "kv_lora_rank": _SIZE,
    "layer_norm_eps": _NOT_NEGATIVE,
    "layer_norm_epsilon": _NOT_NEGATIVE,
    "layer_types": Listing(Text()),
    "linear_conv_kernel_dim": _SIZE,
    "linear_key_head_dim": _SIZE,
    "linear_num_key_heads": _SIZE,
    "linear_num_value_heads": _SIZE,
    "linear_value_head_dim": _SIZE,
    "logit_scale": Number(),
    "max_position_embeddings": _SIZE,
    "max_window_layers": _COUNT,
    "mlp_bias": _FLAG,
    "mlp_only_layers": _BY_LAYER,
    "moe_intermediate_size": _SIZE,
    "moe_layer_freq": _SIZE,
    "moe_layers": _BY_LAYER,
    "n_embd": _SIZE,
    "n_group": _COUNT,
    "n_head": _SIZE,
    "n_inner": _SIZE,
    "n_layer": _LAYERS,
    "n_positions": _SIZE,
    "n_routed_experts": _EXPERTS,
    "n_shared_experts": _COUNT,
    "no_rope_layer_interval": _SIZE,
    "no_rope_layers": _BY_LAYER,
    "norm_topk_prob": _FLAG,
    "num_attention_heads": _SIZE,
    "num_experts": _EXPERTS,
    "num_experts_per_tok": _SIZE,
    "num_hidden_layers": _LAYERS,
    "num_key_value_heads": _SIZE,
    "num_local_experts": _EXPERTS,
    "num_mtp_layers": _COUNT,
    "num_nextn_predict_layers": _COUNT,
    "original_max_position_embeddings": _SIZE,
    "partial_rotary_factor": _FRACTION,
    "q_lora_rank": _SIZE,
    "qk_nope_head_dim": _SIZE,
    "qk_rope_head_dim": _SIZE,
    "query_pre_attn_scalar": _SIZE,
    "rms_norm_eps": _NOT_NEGATIVE,
    "rope_interleave": _FLAG,
    "rope_local_base_freq": _POSITIVE,
    "rope_parameters": Object(),
    "rope_scaling": Object(),
    "rope_theta": _POSITIVE,
    "routed_scaling_factor": Number(),
    "scale_attn_by_inverse_layer_idx": _FLAG,
    "scale_attn_weights": _FLAG,
    "scoring_func": Text(),
    "shared_expert_intermediate_size": _SIZE,
    "sliding_window": _SIZE,
    "sliding_window_pattern": _SIZE,
    "swiglu_alpha": Number(),
    "swiglu_limit": _POSITIVE,
    "tie_word_embeddings": _FLAG,
    "topk_group": _COUNT,
    "topk_method": Text(),
    "torch_dtype": _DTYPE,
    "use_bidirectional_attention": _FLAG,
    "use_qk_norm": _FLAG,
    "use_sliding_window": _FLAG,
    "v_head_dim": _SIZE,
    "vocab_size": _SIZE,
}

ROPE_KINDS: dict[str, Kind] = {
    "attention_factor": _POSITIVE,
    "beta_fast": _NOT_NEGATIVE,
    "beta_slow": _NOT_NEGATIVE,
    "factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "long_factor": Listing(_POSITIVE),
    "low_freq_factor": _POSITIVE,
    "mscale": _NOT_NEGATIVE,
    "mscale_all_dim": _NOT_NEGATIVE,
    "original_max_position_embeddings": Integer(least=2),
    "partial_rotary_factor": _FRACTION,
    "rope_theta": _POSITIVE,
    "rope_type": Text(),
    "short_factor": Listing(_POSITIVE),
    "truncate": _FLAG,
    "type": Text(),
}

_MAY_BE_NULL = {
    "attn_logit_softcapping",
    "attention_chunk_size",
    "final_logit_softcapping",
    "head_dim",
    "n_group",
    "norm_topk_prob",
    "num_key_value_heads",
    "q_lora_rank",
    "rope_interleave",
    "sliding_window",
    "topk_group",
    "topk_method",
}
"""Keys whose null means something, though their default may be another value."""

_MAY_BE_NULL_IN_ROPE = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "mscale",
    "mscale_all_dim",
}


_READ_WITHOUT_DEFAULT = {
    "_sliding_window_pattern",
    "add_cross_attention",
    "dtype",
    "full_attention_interval",
    "head_dim",
    "moe_layer_freq",
    "num_nextn_predict_layers",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "scoring_func",
    "sliding_window_pattern",
    "topk_method",
    "torch_dtype",
    "use_bidirectional_attention",
}
"""Keys that families read although `DEFAULTS` has none for them."""


def check_values(values: Values, model_type: str) -> None:
    """Refuses a config.json of a model type with a value that cannot be right.

    What models of this type do not read may be anything.

    Raises:
      UserError: Naming the file, the key, its value and what it must be.
    """
    defaults, renamed = DEFAULTS[model_type], RENAMED.get(model_type, {})
    read = defaults.keys() | renamed.keys() | _READ_WITHOUT_DEFAULT
    for key in sorted(read & values.content.keys()):
        default = defaults.get(renamed.get(key, key))
        _check(values, key, KINDS[key], default is None or key in _MAY_BE_NULL)


def check_rope(values: Values) -> None:
    """Refuses `rope_parameters`, those of one type of layer, that cannot be right."""
    for key in sorted(ROPE_KINDS.keys() & values.content.keys()):
        _check(values, key, ROPE_KINDS[key], key in _MAY_BE_NULL_IN_ROPE)


def _check(values: Values, key: str, kind: Kind, may_be_null: bool) -> None:
    if values.content[key] is not None or not may_be_null:
        values.take(key, kind)
