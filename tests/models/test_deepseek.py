"""DeepSeek-V2, -V3 and Kimi K2: what config.json says, there and back.

`tests/hf/test_goldens.py` compares numbers; here are the fields that no golden has.
"""

import pytest

from fdl_configs.models import deepseek_v2, deepseek_v3
from fdl_configs.models.catalogue import MODELS
from maxfdl import hf
from maxfdl.errors import UserError
from maxfdl.tensors.hugging_face.config import normalised
from tests import goldens

FAMILIES = {"deepseek_v2": deepseek_v2, "deepseek_v3": deepseek_v3}
BIASES = {"attention_bias": True}
SHORT = {"factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 16}
YARN = SHORT | {"rope_type": "yarn"}

CHANGES = [
    ("deepseek_v2", BIASES | {"mlp_bias": True, "first_k_dense_replace": 0}),
    ("deepseek_v2", {"mlp_bias": True, "q_lora_rank": None, "hidden_act": "gelu"}),
    ("deepseek_v2", {"topk_method": "greedy", "num_experts_per_tok": 8}),
    ("deepseek_v2", {"n_shared_experts": 3, "routed_scaling_factor": 1.5}),
    ("deepseek_v2", {"topk_group": 4}),
    ("deepseek_v2_lite", BIASES | {"first_k_dense_replace": 9}),
    ("deepseek_v3", BIASES | {"first_k_dense_replace": 4, "tie_word_embeddings": True}),
    ("deepseek_v3", {"rope_interleave": False, "norm_topk_prob": False}),
    ("deepseek_v3", {"q_lora_rank": None, "rms_norm_eps": 1e-3}),
    ("deepseek_v3", {"topk_group": 4, "v_head_dim": 6}),
    ("deepseek_v3", {"rope_parameters": YARN}),
    ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 0.7, "truncate": False}}),
    ("deepseek_v3", {"rope_parameters": YARN | {"mscale_all_dim": 0.123456789}}),
    ("deepseek_v3", {"rope_parameters": YARN | {"mscale_all_dim": 1, "factor": 1.0}}),
    (
        "deepseek_v3",
        {"rope_parameters": YARN | {"mscale": 0.9, "mscale_all_dim": 0.6}},
    ),
    (
        "deepseek_v3",
        {"rope_parameters": SHORT | {"rope_type": "linear", "mscale_all_dim": 2.0}},
    ),
    (
        "deepseek_v3",
        {"rope_parameters": {"rope_type": "default", "mscale_all_dim": 2.0}},
    ),
]


def network(folder, changes):
    """Returns the module of a golden folder's family, and its graph with changes."""
    config = hf.Folder(goldens.FOLDER / folder).config
    family = FAMILIES[config["model_type"]]
    return family, family.from_hf(normalised(config | changes))


@pytest.mark.parametrize(("folder", "changes"), CHANGES)
def test_what_is_written_is_read_as_the_same(folder, changes):
    family, model = network(folder, changes)
    assert family.from_hf(normalised(family.to_hf(model))) == model


REFUSED = [
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "must be greedy or group_limited"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "must be softmax"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "must be sigmoid"),
    ("deepseek_v3", {"topk_method": "greedy"}, "must be noaux_tc"),
    ("deepseek_v3", {"num_key_value_heads": 2}, "must be num_attention_heads"),
    ("deepseek_v3", {"moe_layer_freq": 2}, "must be 1"),
    ("deepseek_v3", {"n_shared_experts": 0}, "must be at least 1"),
    (
        "deepseek_v3",
        {
            "rope_parameters": YARN
            | {"rope_type": "longrope", "short_factor": [1.0] * 4}
            | {"long_factor": [2.0] * 4, "mscale_all_dim": 1.0}
        },
        "must be 0 with rope_type longrope",
    ),
]


@pytest.mark.parametrize(("folder", "changes", "problem"), REFUSED)
def test_what_is_not_supported_is_refused(folder, changes, problem):
    with pytest.raises(UserError, match=problem):
        network(folder, changes)


LATENT = {
    "attention_bias": False,
    "hidden_act": "silu",
    "kv_lora_rank": 512,
    "moe_layer_freq": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
}
V2 = LATENT | {
    "first_k_dense_replace": 1,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "vocab_size": 102400,
}
V3 = LATENT | {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "q_lora_rank": 1536,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}
KIMI = V3 | {
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}
PUBLISHED = {
    "deepseek_v2_236b": V2
    | {
        "hidden_size": 5120,
        "intermediate_size": 12288,
        "moe_intermediate_size": 1536,
        "n_group": 8,
        "n_routed_experts": 160,
        "num_attention_heads": 128,
        "num_hidden_layers": 60,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "routed_scaling_factor": 16.0,
        "topk_group": 3,
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v2_lite_16b": V2
    | {
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 64,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
        "topk_method": "greedy",
    },
    "deepseek_v3_671b": V3
    | {
        "first_k_dense_replace": 3,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "n_group": 8,
        "n_routed_experts": 256,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
        "vocab_size": 129280,
    },
    "kimi_k2_1t": KIMI,
    "kimi_k2_0905_1t": KIMI
    | {
        "max_position_embeddings": 262144,
        "rope_scaling": KIMI["rope_scaling"] | {"factor": 64.0},
    },
    "moonlight_16b_a3b": LATENT
    | {
        "first_k_dense_replace": 1,
        "hidden_size": 2048,
        "intermediate_size": 11264,
        "max_position_embeddings": 8192,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 27,
        "num_key_value_heads": 16,
        "q_lora_rank": None,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "routed_scaling_factor": 2.446,
        "scoring_func": "sigmoid",
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "vocab_size": 163840,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_size_is_what_its_published_config_says(name):
    config = normalised(PUBLISHED[name])
    assert FAMILIES[config["model_type"]].from_hf(config) == MODELS[name].make()
