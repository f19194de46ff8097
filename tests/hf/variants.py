"""Golden folders, loaded in all the ways that must give the same numbers."""

import functools
import pathlib
from typing import Any

import fiddle as fdl
import jax
import pytest

from maxfdl import graph, hf
from maxfdl.hf.loading import Loaded
from maxfdl.model import LinenModel
from maxfdl.mutations import to_linen, unroll_layers
from tests.goldens import FOLDER
from tests.hf.toys.linen.norm import Through as LinenThrough
from tests.hf.toys.nnx.norm import Through as NnxThrough

FAMILIES = (
    "llama2",
    "llama3",
    "mistral",
    "gemma",
    "gemma2",
    "gemma3",
    "qwen2",
    "qwen3",
    "olmo2",
    "olmo3",
    "phi3",
    "phi4_mini",
    "smollm3",
    "gpt2",
    "cohere2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "glm4_moe",
    "llama4",
    "deepseek_v2",
    "deepseek_v2_lite",
    "deepseek_v3",
    "kimi_k2",
    "qwen3_next",
)
"""Golden folders whose family has a graph and a name table."""

VARIANTS = {
    "nnx, scanned": (),
    "linen, unrolled": (to_linen, unroll_layers),
    "nnx, unrolled": (unroll_layers,),
    "linen, scanned": (to_linen,),
}
OFTEN = ("llama3", "gemma3", "mixtral", "deepseek_v3", "qwen3_next", "gpt2")
"""Between them, every layer: what the fast part runs where others wait for the slow."""


def each_family(*fast: str) -> list[Any]:
    """Returns all families to parametrize a test by; those not in `fast` are slow."""
    fast = fast or OFTEN
    return [
        pytest.param(name, marks=() if name in fast else pytest.mark.slow)
        for name in FAMILIES
    ]


@functools.cache
def loaded(name: str) -> Loaded:
    return hf.load(FOLDER / name)


def varied(config: Any, variant: str) -> Any:
    """Returns the experiment as a variant has it."""
    for mutation in VARIANTS[variant]:
        config = mutation(config)
    return config


def cut(config: Any, variables: Any, num_stacks: int, first_layer: bool = False):
    """Returns a graph that ends after some stacks, without a last norm, and its part.

    With `first_layer`, it ends after the first layer of the one stack.
    """
    config = graph.copy(config)
    is_linen = fdl.get_callable(config.backend) is LinenModel
    config.model.final_norm = fdl.Partial(LinenThrough if is_linen else NnxThrough)
    stacks = config.model.decoder.stacks[:num_stacks]
    params = {k: v for k, v in variables["params"].items() if k != "final_norm"}
    parts = {"params": params, "state": variables["state"]}
    if first_layer:
        (stack,) = stacks
        stack.layers, stack.repeats = stack.layers[:1], 1
    config.model.decoder.stacks = stacks
    return config, {
        name: _cut(part, num_stacks, first_layer) for name, part in parts.items()
    }


def _cut(part: Any, num_stacks: int, first_layer: bool) -> Any:
    stacks = {
        f"stacks_{i}": part["decoder"][f"stacks_{i}"]
        for i in range(num_stacks)
        if f"stacks_{i}" in part.get("decoder", {})
    }
    if first_layer and stacks:
        layers = {k: v for k, v in stacks["stacks_0"].items() if k == "layers_0"}
        stacks = {"stacks_0": jax.tree.map(lambda leaf: leaf[:1], layers)}
    rest = {k: v for k, v in part.items() if k != "decoder"}
    return {**rest, "decoder": stacks} if stacks else rest


def with_config(
    folder: pathlib.Path, config: str, target: pathlib.Path
) -> pathlib.Path:
    """Makes a folder in which another file of `folder` is its config.json."""
    target.mkdir(exist_ok=True)
    (target / "config.json").write_bytes((folder / config).read_bytes())
    weights = target / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(folder / "model.safetensors")
    return target
