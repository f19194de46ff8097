"""Normalises config.json.

Files on the hub write rotary embeddings in two ways: `rope_parameters` (transformers
5), or `rope_theta`, `rope_scaling` and others. They leave out defaults of their class,
and give patterns of layers as a period or as a list. `normalised` returns one form.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maxfdl.errors import UserError, did_you_mean
from maxfdl.outside import Object, Text, Values
from maxfdl.tensors.hugging_face.defaults import (
    ALIASES,
    DEFAULTS,
    GPT_OSS_ROPE,
    RENAMED,
    ROPE_THETA,
    ROTARY_FRACTION,
)
from maxfdl.tensors.hugging_face.keys import check_rope, check_values

Config = dict[str, Any]

_LEGACY_ROPE = (
    "rope_theta",
    "rope_scaling",
    "rope_local_base_freq",
    "partial_rotary_factor",
)
_PERIODS = (
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "full_attention_interval",
)
_ROPE_BY_TYPE = ("gemma3_text", "olmo3")
_TYPES = ("full_attention", "sliding_attention")
_KNOW_ORIGINAL_LENGTH = ("llama3", "yarn", "longrope")


def normalised(config: Mapping[str, Any], file: str = "config.json") -> Config:
    """Returns `config` with every default written out, in the layout of transformers 5.

    Of a multimodal model, it is that of the text part. Unknown keys are kept.

    Args:
      config: What config.json holds.
      file: Its name, for errors.

    Raises:
      UserError: If the model type is not supported, or a value cannot be right.
    """
    values = _text_part(Values(file, config))
    kind = _model_type(values)
    check_values(values, kind)
    given = dict(values.content)
    for old, new in RENAMED.get(kind, {}).items():
        if old in given:
            given.setdefault(new, given.pop(old))
    if "torch_dtype" in given:
        given.setdefault("dtype", given.pop("torch_dtype"))
    made = {**DEFAULTS[kind], **given, "model_type": kind}
    _fill_heads(made, values)
    _fill_patterns(made)
    if kind != "gpt2":
        made["rope_parameters"] = _rope_parameters(made, values)
    dropped = (*_LEGACY_ROPE, *_PERIODS)
    return {key: value for key, value in made.items() if key not in dropped}


def _text_part(outer: Values) -> Values:
    """Returns the values of a language model, or of that in a multimodal model."""
    if outer.take("text_config", Object(), default=None) is None:
        return outer
    text = outer.within("text_config")
    shared = ("model_type", "tie_word_embeddings", "torch_dtype", "dtype")
    beside = {key: outer.content[key] for key in shared if key in outer}
    return dataclasses.replace(text, content={**beside, **text.content})


def rope_of(config: Mapping[str, Any], layer_type: str | None = None) -> Config:
    """Returns the rotation of layers of one type, of a normalised config."""
    parameters = config["rope_parameters"]
    return parameters[layer_type] if layer_type in parameters else parameters


def _model_type(values: Values) -> str:
    name = values.take("model_type", Text(), default=None)
    kind = ALIASES.get(name or "", name)
    if kind not in DEFAULTS:
        raise UserError(
            f"{values.file} has model_type [{name}], which must be one of"
            f" {', '.join(sorted(DEFAULTS))}.{did_you_mean(str(name), DEFAULTS)} Code"
            " that comes with a checkpoint is never run."
        )
    return kind


def _fill_heads(config: Config, values: Values) -> None:
    kind = config["model_type"]
    if kind == "gpt2":
        return
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    if kind in ("deepseek_v2", "deepseek_v3"):
        config["head_dim"] = config["qk_rope_head_dim"]
        config["qk_head_dim"] = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    elif config.get("head_dim") is None:
        config["head_dim"], rest = divmod(
            config["hidden_size"], config["num_attention_heads"]
        )
        if rest:
            raise values.wrong(
                f"hidden_size ({config['hidden_size']}) must be a multiple of"
                f" num_attention_heads ({config['num_attention_heads']}) where there is"
                " no head_dim"
            )
    # Gemma's first files say gelu and mean its approximation by tanh.
    if kind == "gemma" and config["hidden_act"] == "gelu":
        config["hidden_act"] = "gelu_pytorch_tanh"
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        config["sliding_window"] = None


def _fill_patterns(config: Config) -> None:
    """Writes out the kind of each layer."""
    layers = range(config.get("num_hidden_layers", 0))
    if config.get("mlp_only_layers", ()) is None:
        config["mlp_only_layers"] = []
    if "no_rope_layers" in config and not config["no_rope_layers"]:
        period = config["no_rope_layer_interval"]
        config["no_rope_layers"] = [int((i + 1) % period != 0) for i in layers]
    if config.get("moe_layers", ()) is None:
        step = config["interleave_moe_layer_step"]
        config["moe_layers"] = list(layers[step - 1 :: step])
    if config.get("layer_types", ()) is None:
        # Not more than there are: the family says what is missing.
        layers = range(len(config.get("no_rope_layers", layers)))
        config["layer_types"] = [_layer_type(config, i) for i in layers]


def _layer_type(config: Config, layer: int) -> str:
    kind = config["model_type"]
    if kind in ("qwen2", "qwen3"):
        slides = layer >= config["max_window_layers"]
        return _sliding(slides and config["sliding_window"] is not None)
    if kind == "smollm3":
        slides = not config["no_rope_layers"][layer]
        return _sliding(slides and config["sliding_window"] is not None)
    if kind == "llama4_text":
        chunked = config["no_rope_layers"][layer]
        return "chunked_attention" if chunked else "full_attention"
    if kind == "qwen3_next":
        full = (layer + 1) % config.get("full_attention_interval", 4) == 0
        return "full_attention" if full else "linear_attention"
    period = {"gemma2": 2, "gpt_oss": 2, "olmo3": 4, "cohere2": 4, "gemma3_text": 6}[
        kind
    ]
    if kind in ("cohere2", "gemma3_text"):
        period = config.get("sliding_window_pattern", period)
    return _sliding((layer + 1) % period != 0)


def _sliding(slides: bool) -> str:
    return "sliding_attention" if slides else "full_attention"


def _rope_parameters(config: Config, values: Values) -> Config:
    """Returns the rotation, or those by type of layer where a family has several."""
    kind = config["model_type"]
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = values.within(key)
    by_type = given.content.keys() & {*(config.get("layer_types") or ()), *_TYPES}
    if kind not in _ROPE_BY_TYPE:
        if by_type:
            raise values.wrong(
                f"{key} (by type of layer) must be one rotation for all layers of a"
                f" {kind}"
            )
        if not given.content and kind == "gpt_oss":
            given = dataclasses.replace(given, content=GPT_OSS_ROPE)
        return _one_rope(config, given, _theta(config))
    # One rotation is that of layers of full attention: only they are stretched, and
    # have the large base.
    full = given.within("full_attention") if by_type else given
    sliding = given.within("sliding_attention")
    local = 10_000.0 if kind == "gemma3_text" else _theta(config)
    local = config.get("rope_local_base_freq", local)
    return {
        "full_attention": _one_rope(config, full, _theta(config)),
        "sliding_attention": _one_rope(config, sliding, local),
    }


def _theta(config: Config) -> float:
    default = ROPE_THETA.get(config["model_type"], 10_000.0)
    return config.get("rope_theta", default)


def _one_rope(config: Config, given: Values, theta: float) -> Config:
    check_rope(given)
    kind = config["model_type"]
    rope = {key: value for key, value in given.content.items() if key != "type"}
    rope.setdefault("rope_type", given.content.get("type", "default"))
    if kind == "phi3" and rope["rope_type"] in ("su", "yarn"):
        rope["rope_type"] = "longrope"
    rope.setdefault("rope_theta", theta)
    fraction = config.get("partial_rotary_factor", ROTARY_FRACTION.get(kind))
    if fraction is not None:
        rope.setdefault("partial_rotary_factor", fraction)
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and kind not in ROTARY_FRACTION:
        raise given.wrong(
            f"partial_rotary_factor ({rope['partial_rotary_factor']}) must be 1: in"
            f" Hugging Face's {kind}, the whole of a head turns"
        )
    if rope["rope_type"] in _KNOW_ORIGINAL_LENGTH:
        key = "original_max_position_embeddings"
        if key in config:
            rope[key] = config[key]
        rope.setdefault(key, config["max_position_embeddings"])
    return rope
