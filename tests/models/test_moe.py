"""Families with experts, in shapes that no golden folder has."""

import jax
import pytest

from fdl_configs.models import glm4_moe, gpt_oss, llama4, mixtral, qwen3_moe
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.hf.describing import describe
from maxfdl.model import NnxModel
from maxfdl.tensors.hugging_face.config import normalised

WIDTHS = {
    "vocab_size": 32,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 20,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-3,
}
FAMILIES = {
    "mixtral": mixtral,
    "qwen3_moe": qwen3_moe,
    "gpt_oss": gpt_oss,
    "glm4_moe": glm4_moe,
    "llama4_text": llama4,
}
PATTERNS = {
    "mixtral, a window": {
        "model_type": "mixtral",
        "num_hidden_layers": 3,
        "num_local_experts": 5,
        "num_experts_per_tok": 3,
        "sliding_window": 5,
        "hidden_act": "gelu",
    },
    "qwen3_moe, layers without experts": {
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 12,
        "num_hidden_layers": 7,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "use_sliding_window": True,
        "sliding_window": 4,
        "attention_bias": True,
    },
    "qwen3_moe, no experts": {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 2,
        "num_experts": 0,
    },
    "gpt_oss, no pattern": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 3,
        "num_local_experts": 6,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "sliding_window": 3,
        "attention_bias": False,
        "swiglu_alpha": 1.1,
        "swiglu_limit": 0.4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
    },
    "gpt_oss, all by default": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "num_local_experts": 4,
    },
    "glm4_moe, groups": {
        "model_type": "glm4_moe",
        "moe_intermediate_size": 12,
        "num_hidden_layers": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "first_k_dense_replace": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.7,
        "rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 1.0},
    },
    "glm4_moe, all with experts": {
        "model_type": "glm4_moe",
        "num_hidden_layers": 2,
        "first_k_dense_replace": 0,
        "use_qk_norm": True,
    },
    "llama4, no pattern": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 28,
        "num_hidden_layers": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_layers": [0, 3],
        "no_rope_layers": [0, 1, 1, 0],
        "layer_types": ["chunked_attention", "full_attention"] * 2,
        "attention_chunk_size": 6,
        "attention_bias": True,
        "floor_scale": 3,
        "attn_scale": 0.7,
    },
    "llama4, nothing turns, no experts": {
        "model_type": "llama4_text",
        "num_hidden_layers": 2,
        "moe_layers": [],
        "no_rope_layers": [0, 0],
    },
    "llama4, neither norms nor temperature": {
        "model_type": "llama4_text",
        "num_hidden_layers": 4,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "use_qk_norm": False,
        "attn_temperature_tuning": False,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    },
}


def network(config):
    """Returns the graph of a config.json."""
    config = normalised(WIDTHS | config)
    return FAMILIES[config["model_type"]].from_hf(config)


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_written_is_read_as_the_same(name):
    model = network(PATTERNS[name])
    written = FAMILIES[PATTERNS[name]["model_type"]].to_hf(model)
    assert network(written) == model


def test_a_network_without_experts_is_no_glm():
    whole = {"rope_theta": 300.0, "partial_rotary_factor": 1.0}
    model = network(
        {
            "model_type": "glm4_moe",
            "num_hidden_layers": 2,
            "first_k_dense_replace": 2,
            "rope_parameters": whole,
        }
    )
    with pytest.raises(UserError, match="a GLM-4.5 must have experts in some layer."):
        glm4_moe.to_hf(model)
    assert describe(model)["model_type"] == "llama"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"layer_types": ["sliding_attention"] * 4},
            r"layer_types \(sliding_attention\) must be full_attention or",
        ),
        (
            {"no_rope_layers": [1, 0]},
            "no_rope_layers has 2 entries and num_hidden_layers is 4; they must agree.",
        ),
        (
            {"attention_chunk_size": None},
            r"attention_chunk_size \(None\) must be a number of tokens",
        ),
        (
            {"use_qk_norm": True},
            r"rope_type \(yarn\) must be one that keeps lengths where use_qk_norm",
        ),
    ],
)
def test_llama4_refuses(changes, problem):
    base = PATTERNS["llama4, neither norms nor temperature"]
    with pytest.raises(UserError, match=problem):
        network(base | changes)


def parameters(make):
    return NnxModel(module=graph.build(make())).parameters()


def count(tree):
    return sum(each.size for each in jax.tree.leaves(tree, is_leaf=is_parameter))


def is_parameter(node):
    return not isinstance(node, dict)


@pytest.mark.parametrize(
    ("make", "published"),
    [(glm4_moe.glm4_5, 358_337_791_296), (glm4_moe.glm4_5_air, 110_468_824_832)],
)
def test_what_glm_leaves_out_is_the_rest_of_the_published_number(make, published):
    declared, model = parameters(make), make()
    sparse = model.decoder.stacks[1]
    width, vocabulary = model.features, model.vocab_size
    # Behind the last layer: one more with its own embedding and head, a projection of
    # two vectors to one, and three norms. And each router has a bias.
    layer = count(declared["decoder"]["stacks_1"]) // sparse.repeats
    further = layer + 2 * vocabulary * width + 2 * width**2 + 3 * width
    biases = (sparse.repeats + 1) * sparse.layers[0].mlp.num_experts
    assert count(declared) + further + biases == published


@pytest.mark.parametrize(
    ("make", "published"),
    [
        (llama4.llama4_17b_16e, 108_641_793_536),
        (llama4.llama4_17b_128e, 401_583_781_376),
    ],
)
def test_what_llama4_leaves_out_is_the_rest_of_the_published_number(make, published):
    width, hidden, depth, patches = 1408, 5632, 34, 576  # of vision_config
    attention = 4 * (width**2 + width)
    mlp = 2 * width * hidden + hidden + width
    layer = attention + mlp + 4 * width
    outside = 3 * 14**2 * width + width + (patches + 1) * width + 4 * width
    adapter = hidden * 4096 + 4096 * 4096 + 4096 * 5120
    vision = depth * layer + outside + adapter
    assert count(parameters(make)) + vision == published
