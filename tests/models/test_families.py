"""Dense families: what their config.json says, there and back.

`tests/hf/test_goldens.py` compares numbers; here are the fields that no golden has.
"""

import json
from typing import Any

import pytest

from fdl_configs.families import family_of
from fdl_configs.models.catalogue import MODELS
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.hf.describing import describe
from maxfdl.tensors.hugging_face.config import normalised
from tests.goldens import FOLDER

SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = {"layer_types": [FULL, SLIDING, SLIDING, FULL], "sliding_window": 5}
ALL_FULL = {"layer_types": [FULL] * 4}
UNTIED, BIASES = {"tie_word_embeddings": False}, {"attention_bias": True}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}

CHANGES = [
    ("llama2", BIASES | {"mlp_bias": True, "hidden_act": "gelu_new"}),
    ("mistral", {"sliding_window": None}),
    ("gemma", UNTIED | BIASES),
    ("gemma2", MIXED | BIASES | UNTIED),
    ("gemma2", ALL_FULL | {"sliding_window": None}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma3", MIXED | BIASES | {"num_hidden_layers": 4}),
    ("gemma3", ALL_FULL | {"num_hidden_layers": 4, "final_logit_softcapping": 5.0}),
    ("qwen2", MIXED | {"use_sliding_window": True, "rope_parameters": YARN}),
    ("qwen3", MIXED | BIASES | UNTIED | {"use_sliding_window": True}),
    ("olmo2", BIASES | {"tie_word_embeddings": True}),
    ("olmo3", MIXED | BIASES),
    ("olmo3", {"layer_types": [SLIDING] * 4}),
    ("phi3", {"sliding_window": None}),
    ("smollm3", MIXED | BIASES | {"use_sliding_window": True, "mlp_bias": True}),
    ("smollm3", {"no_rope_layers": [0, 0, 0, 0]}),
    ("gpt2", {"n_inner": 100, "scale_attn_weights": False}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    ("cohere2", MIXED | BIASES | UNTIED),
    ("cohere2", ALL_FULL),
]


def changed(folder: str, **changes: Any) -> dict[str, Any]:
    config = json.loads((FOLDER / folder / "config.json").read_text())
    return normalised({**config, **changes})


def graph_of(config: dict[str, Any]):
    return family_of(config["model_type"]).from_hf(config)


@pytest.mark.parametrize(("folder", "changes"), CHANGES)
def test_what_to_hf_writes_gives_the_same_graph(folder, changes):
    config = changed(folder, **changes)
    model, family = graph_of(config), family_of(config["model_type"])
    written = json.loads(json.dumps(family.to_hf(model)))
    assert family.from_hf(normalised(written)) == model
    graph.build(model)


@pytest.mark.parametrize(("folder", "changes"), CHANGES)
def test_a_change_changes_the_graph(folder, changes):
    assert graph_of(changed(folder, **changes)) != graph_of(changed(folder))


@pytest.mark.parametrize("name", MODELS)
def test_every_size_has_a_config_json(name):
    model = MODELS[name].make()
    config = describe(model)
    assert graph_of(config) == model


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("llama3_1_8b", "llama"),
        ("smollm2_135m", "llama"),
        ("qwen2_7b", "qwen2"),
        ("qwen3_8b", "qwen3"),
        ("mistral_7b", "mistral"),
        ("gemma3_4b", "gemma3_text"),
        # A part of a head that turns is no Llama, whose tensors it could have.
        ("phi4_mini", "phi3"),
    ],
)
def test_a_graph_is_described_as_its_own_family(name, model_type):
    assert describe(MODELS[name].make())["model_type"] == model_type


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "only causal"),
        ("gpt2", {"add_cross_attention": True}, "only decoders"),
        (
            "qwen2",
            {"layer_types": ["chunked_attention"] * 4},
            r"layer_types \(chunked_attention\) must be full_attention or sliding",
        ),
        ("gemma2", {"layer_types": [FULL]}, "layer_types has 1 entries and num_hidden"),
        ("gemma2", {"sliding_window": None}, r"sliding_window \(None\) must be a num"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 entries"),
        ("llama2", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "llama"),
        ("mistral", {"hidden_act": "tanh"}, r"hidden_act \(tanh\) must be one of"),
    ],
)
def test_what_is_not_supported_is_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        graph_of(changed(folder, **changes))
