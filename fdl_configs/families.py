"""The families that Hugging Face's config.json can describe.

A family is a module of `fdl_configs.models` with `from_hf(config)` and `to_hf(model)`,
between a normalised config.json and the graph of a network. Its tensor names are
`maxfdl.tensors.names.<family>`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import fiddle as fdl

from fdl_configs.models import (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    gemma,
    gemma2,
    gemma3,
    glm4_moe,
    gpt2,
    gpt_oss,
    llama,
    llama4,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
    smollm3,
)
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.tensors import names
from maxfdl.tensors.hugging_face.folder import CONFIG, Folder


@dataclasses.dataclass(frozen=True)
class Family:
    """Converts between config.json and the graphs of one family.

    Args:
      name: Name of its module.
      from_hf: Returns the graph of a normalised config.json.
      to_hf: Returns the config.json that `from_hf` reads as a graph.
    """

    name: str
    from_hf: Callable[[Mapping[str, Any]], fdl.Partial]
    to_hf: Callable[[fdl.Partial], dict[str, Any]]


_MODULES = (
    cohere2,
    deepseek_v2,
    deepseek_v3,
    gemma,
    gemma2,
    gemma3,
    glm4_moe,
    gpt2,
    gpt_oss,
    llama,
    llama4,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
    smollm3,
)


def _name(module: Any) -> str:
    return module.__name__.rpartition(".")[2]


FAMILIES = {
    _name(module): Family(_name(module), module.from_hf, module.to_hf)
    for module in _MODULES
}
"""Every family, by its name, in alphabetical order."""


def family_of(model_type: str) -> Family:
    """Returns the family of a normalised `model_type`."""
    return FAMILIES[names.family_of(model_type)]


def network_of(folder: Folder) -> fdl.Partial:
    """Returns the graph of the network that a folder's config.json describes.

    Raises:
      UserError: If there is no such network, naming the file.
    """
    config = folder.config
    try:
        network = family_of(config["model_type"]).from_hf(config)
        graph.validate(network)
        return network
    except UserError as error:
        raise UserError(f"{folder.path / CONFIG}: {error}") from None
