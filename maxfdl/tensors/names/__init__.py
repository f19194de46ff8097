"""The name tables, one module per family."""

from maxfdl.tensors.names import (
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
from maxfdl.tensors.table import NameTable

TABLES: dict[str, NameTable] = {
    "cohere2": cohere2.TABLE,
    "deepseek_v2": deepseek_v2.TABLE,
    "deepseek_v3": deepseek_v3.TABLE,
    "gemma": gemma.TABLE,
    "gemma2": gemma2.TABLE,
    "gemma3": gemma3.TABLE,
    "glm4_moe": glm4_moe.TABLE,
    "gpt2": gpt2.TABLE,
    "gpt_oss": gpt_oss.TABLE,
    "llama": llama.TABLE,
    "llama4": llama4.TABLE,
    "mistral": mistral.TABLE,
    "mixtral": mixtral.TABLE,
    "olmo2": olmo2.TABLE,
    "olmo3": olmo3.TABLE,
    "phi3": phi3.TABLE,
    "qwen2": qwen2.TABLE,
    "qwen3": qwen3.TABLE,
    "qwen3_moe": qwen3_moe.TABLE,
    "qwen3_next": qwen3_next.TABLE,
    "smollm3": smollm3.TABLE,
}
"""The table of each family, by its name, in alphabetical order."""


def family_of(model_type: str) -> str:
    """Returns the name of the family that a normalised config.json means."""
    found = [name for name, each in TABLES.items() if model_type in each.model_types]
    assert len(found) == 1, (model_type, found)  # held by tests/tensors/test_table.py
    return found[0]


def table_of(model_type: str) -> NameTable:
    return TABLES[family_of(model_type)]
