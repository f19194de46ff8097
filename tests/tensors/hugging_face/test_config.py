"""config.json in its two layouts, and what it means by leaving keys out."""

import json
import re

import pytest

from maxfdl.errors import UserError
from maxfdl.tensors.hugging_face.config import normalised, rope_of
from tests.goldens import FOLDER

FOLDERS = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
LEGACY = sorted(path.parent.name for path in FOLDER.glob("*/config_legacy.json"))


def read(folder: str, name: str = "config.json") -> dict:
    return json.loads((FOLDER / folder / name).read_text())


def test_all_families_have_their_config_here():
    assert len(FOLDERS) == 25 and len(LEGACY) == 23


@pytest.mark.parametrize("folder", LEGACY)
def test_both_layouts_become_the_same(folder):
    legacy = normalised(read(folder, "config_legacy.json"))
    assert legacy == normalised(read(folder))
    assert not {"rope_theta", "rope_scaling", "partial_rotary_factor"} & legacy.keys()


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_transformers_wrote_stays_as_it_is(folder):
    config = read(folder)
    config.pop("_sliding_window_pattern", None)  # layer_types says the same
    kept = normalised(config)
    assert {key: kept[key] for key in config} == config


@pytest.mark.parametrize("folder", FOLDERS)
def test_normalising_twice_is_normalising_once(folder):
    once = normalised(read(folder))
    assert normalised(once) == once


@pytest.mark.parametrize(
    ("key", "folders"),
    [
        ("num_key_value_heads", "llama2"),
        ("head_dim", "llama2 deepseek_v2 deepseek_v3 kimi_k2 cohere2"),
        ("layer_types", "gemma2 gpt_oss olmo3 cohere2 qwen2 qwen3"),
        ("layer_types", "qwen3_next llama4 smollm3"),
        ("no_rope_layers", "llama4 smollm3"),
        ("moe_layers", "llama4"),
    ],
)
def test_what_is_left_out_follows_from_the_rest(key, folders):
    for folder in folders.split():
        config = read(folder)
        bare = {name: value for name, value in config.items() if name != key}
        assert normalised(bare)[key] == normalised(config)[key], folder


def test_a_bare_model_type_has_the_defaults_of_transformers():
    config = normalised({"model_type": "llama"})
    assert config["rms_norm_eps"] == 1e-6
    assert config["num_key_value_heads"] == config["num_attention_heads"] == 32
    assert config["head_dim"] == 128
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}


def test_mistral_and_mixtral_do_not_share_theta_and_window():
    mistral = normalised({"model_type": "mistral"})
    mixtral = normalised({"model_type": "mixtral"})
    assert mistral["sliding_window"] == 4096 and mixtral["sliding_window"] is None
    assert rope_of(mistral)["rope_theta"] == 10_000.0
    assert rope_of(mixtral)["rope_theta"] == 1_000_000.0


def test_a_window_that_is_switched_off_is_none():
    given = {"model_type": "qwen2", "sliding_window": 131072}
    assert normalised(given)["sliding_window"] is None
    given |= {"use_sliding_window": True, "max_window_layers": 2}
    types = normalised(given)["layer_types"]
    assert types[:3] == ["full_attention", "full_attention", "sliding_attention"]


def test_gemma_3_has_two_thetas_in_the_old_layout():
    config = normalised(
        {
            "model_type": "gemma3_text",
            "rope_theta": 500_000.0,
            "rope_local_base_freq": 5_000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 2,
            "num_hidden_layers": 3,
        }
    )
    assert config["layer_types"] == [
        "sliding_attention",
        "full_attention",
        "sliding_attention",
    ]
    assert rope_of(config, "sliding_attention")["rope_theta"] == 5_000.0
    assert rope_of(config, "full_attention") == {
        "rope_type": "linear",
        "factor": 8.0,
        "rope_theta": 500_000.0,
    }


def test_old_names_of_rope_types_are_read():
    yarn = {"type": "yarn", "factor": 4.0}
    config = normalised({"model_type": "deepseek_v3", "rope_scaling": yarn})
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["original_max_position_embeddings"] == 4096
    su = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
    config = normalised({"model_type": "phi3", "rope_scaling": su})
    assert config["rope_parameters"]["rope_type"] == "longrope"


def test_the_text_part_of_a_multimodal_model_is_what_counts():
    text = read("gemma3")
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    assert normalised(outer) == normalised(text)
    # Hub files leave the type of the text part to the outer one.
    del text["model_type"]
    assert normalised(outer)["model_type"] == "gemma3_text"


def test_kimi_k2_is_deepseek_v3_by_another_name():
    config = read("kimi_k2")
    renamed = config | {"model_type": "kimi_k2"}
    assert normalised(renamed) == normalised(config)


def test_published_names_of_keys_are_read():
    config = read("qwen3_moe")
    config["num_experts"] = config.pop("num_local_experts")
    assert normalised(config) == normalised(read("qwen3_moe"))
    config = read("llama2")
    config["torch_dtype"] = config.pop("dtype")
    assert normalised(config) == normalised(read("llama2"))


def test_gelu_of_the_first_gemma_means_its_approximation():
    config = normalised({"model_type": "gemma", "hidden_act": "gelu"})
    assert config["hidden_act"] == "gelu_pytorch_tanh"


def test_an_unknown_model_type_says_what_there_is():
    message = "model_type [lama], which must be one of cohere2, "
    with pytest.raises(UserError, match=re.escape(message)) as error:
        normalised({"model_type": "lama"})
    assert "Did you mean 'llama'" in str(error.value)
    assert "is never run" in str(error.value)
