"""Qwen3-Next: what config.json says, there and back, in shapes that no golden has."""

import pytest

from fdl_configs.models import qwen3_next
from maxfdl import hf
from maxfdl.errors import UserError
from maxfdl.tensors.hugging_face.config import normalised
from tests import goldens

FULL, LINEAR = "full_attention", "linear_attention"


def types(*kinds):
    return {"layer_types": list(kinds), "num_hidden_layers": len(kinds)}


CHANGES = [
    types(FULL, LINEAR, FULL, LINEAR, LINEAR) | {"attention_bias": True},
    types(FULL, FULL) | {"hidden_act": "gelu", "tie_word_embeddings": True},
    types(LINEAR, LINEAR) | {"linear_num_key_heads": 4, "linear_key_head_dim": 6},
    {"mlp_only_layers": [1], "decoder_sparse_step": 2, "norm_topk_prob": False},
    {"num_experts": 0, "linear_conv_kernel_dim": 2},
    {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0}},
    {
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 500.0,
            "original_max_position_embeddings": 16,
        }
    },
]


def network(changes):
    config = hf.Folder(goldens.FOLDER / "qwen3_next").config
    return qwen3_next.from_hf(normalised(config | changes))


@pytest.mark.parametrize("changes", CHANGES)
def test_what_is_written_is_read_as_the_same(changes):
    model = network(changes)
    assert qwen3_next.from_hf(normalised(qwen3_next.to_hf(model))) == model


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            types(FULL, "sliding_attention"),
            "must be full_attention or linear_attention",
        ),
        ({"layer_types": [FULL]}, "they must agree"),
        (types(FULL, LINEAR) | {"hidden_act": "gelu"}, "must be silu"),
    ],
)
def test_what_is_not_supported_is_refused(changes, problem):
    with pytest.raises(UserError, match=problem):
        network(changes)


def test_the_published_config_is_that_of_the_size():
    config = {
        "decoder_sparse_step": 1,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
    }
    read = qwen3_next.from_hf(normalised(config))
    assert read == qwen3_next.qwen3_next_80b_a3b()
