"""MaxText's decoders as families of published weights: one row of a table each.

A family's config.json is what both sides have in common, so its graph is made of it,
and a graph is described to MaxText by it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fdl_configs.maxtext_families import dense, experts, hybrid
from maxfdl.tensors.hugging_face.config import Config
from maxfdl.tensors.maxtext.options import Options


class Family(NamedTuple):
    """A `decoder_block` of MaxText.

    Args:
      model_types: What config.json calls it.
      config: Makes a config.json of MaxText's options.
      options: Makes the options of a normalised config.json.
    """

    model_types: tuple[str, ...]
    config: Callable[[Options], Config]
    options: Callable[[Config], dict[str, Any]]


_plain = dense.plain_options
_FAMILIES: dict[str, Family] = {
    "llama2": Family(("llama",), dense.llama, _plain("llama2")),
    "mistral": Family(("mistral",), dense.mistral, _plain("mistral")),
    "qwen2": Family(("qwen2",), dense.qwen2, _plain("qwen2", attention_bias=True)),
    "qwen3": Family(("qwen3",), dense.qwen3, _plain("qwen3", use_qk_norm=True)),
    "gemma": Family(("gemma",), dense.gemma, _plain("gemma")),
    "gemma2": Family(("gemma2",), dense.gemma2, dense.gemma2_options),
    "gemma3": Family(("gemma3_text",), dense.gemma3, dense.gemma3_options),
    "gpt3": Family(("gpt2",), dense.gpt3, dense.gpt3_options),
    "olmo3": Family(("olmo3",), dense.olmo3, dense.olmo3_options),
    "mixtral": Family(("mixtral",), experts.mixtral, experts.mixtral_options),
    "qwen3_moe": Family(("qwen3_moe",), experts.qwen3_moe, experts.qwen3_moe_options),
    "gpt_oss": Family(("gpt_oss",), experts.gpt_oss, experts.gpt_oss_options),
    "deepseek": Family(
        ("deepseek_v2", "deepseek_v3"), experts.deepseek, experts.deepseek_options
    ),
    "llama4": Family(("llama4_text",), hybrid.llama4, hybrid.llama4_options),
    "qwen3_next": Family(("qwen3_next",), hybrid.qwen3_next, hybrid.qwen3_next_options),
}


def hugging_face(options: Options) -> Config:
    """Returns the config.json of the family that options describe.

    Raises:
      UserError: If an option says what no family here computes.
    """
    return _FAMILIES[options["decoder_block"]].config(options)


def options_from_hf(config: Config) -> dict[str, Any] | None:
    """Returns the options of MaxText that describe a normalised config.json.

    None if MaxText has no such decoder.
    """
    kind = config["model_type"]
    known = (family for family in _FAMILIES.values() if kind in family.model_types)
    family = next(known, None)
    return None if family is None else family.options(config)


def model_types_of(block: str) -> tuple[str, ...]:
    """Returns the model types of config.json that a `decoder_block` stands for."""
    return _FAMILIES[block].model_types
