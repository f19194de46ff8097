"""The trees that MaxText writes of layouts and decoders whose arrays are not here."""

import itertools
import re
from typing import Any

import jax
import pytest

from fdl_configs.maxtext import experiment, network
from maxfdl.maxtext.loading import open_folder
from maxfdl.maxtext.saving import write
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from maxfdl.tensors.maxtext.items import Items
from maxfdl.tensors.maxtext.layout import CheckpointLayout
from maxfdl.tensors.maxtext.options import resolved
from maxfdl.tensors.maxtext.streams import fresh_streams, streams_in
from maxfdl.tensors.maxtext.writing import MaxTextTarget
from maxfdl.tensors.table import layers_of, leaves_of
from tests.maxtext import tiny
from tests.maxtext.goldens import FOLDER, with_slow
from tests.maxtext.test_conversions import equal, read

TREES = sorted(path.stem for path in (FOLDER / "trees").glob("*.txt"))
_SHAPE = {
    "emb_dim": 32,
    "num_query_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "mlp_dim": 64,
    "vocab_size": 128,
    "num_decoder_layers": 2,
    "opt_type": "adamw",
    "dtype": "float32",
}
_DEEPSEEK = {
    "mlp_dim": 32,
    "num_decoder_layers": 3,
    "moe_mlp_dim": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
}
_MOE = {"moe_mlp_dim": 16}
OPTIONS: dict[str, dict[str, Any]] = {
    "olmo3": tiny.OPTIONS["olmo3"],
    "llama4": tiny.OPTIONS["llama4"] | _MOE,
    "qwen3_next": tiny.OPTIONS["qwen3_next"] | _MOE,
    "llama2": {"decoder_block": "llama2"},
    "qwen3": tiny.OPTIONS["qwen3"],
    "deepseek2": tiny.OPTIONS["deepseek2"] | _DEEPSEEK,
    "deepseek3": tiny.OPTIONS["deepseek3"]
    | _DEEPSEEK
    | {"q_lora_rank": 16, "shared_experts": 1},
}


def expected(name: str) -> dict[str, str]:
    """Returns the shape, or the kind, of each leaf by its path in MaxText's tree."""
    lines = (FOLDER / "trees" / f"{name}.txt").read_text().splitlines()
    shapes = {path: shape for path, _, shape in (x.partition("  ") for x in lines)}
    every = "<every name under params/params, same shapes>"
    for path in [path for path in shapes if path.endswith(every)]:
        del shapes[path]
        shapes |= {
            path.replace(every, own.removeprefix("params/params/")): shape
            for own, shape in shapes.items()
            if own.startswith("params/params/")
        }
    return {each: shape for path, shape in shapes.items() for each in spelt_out(path)}


def spelt_out(path: str) -> list[str]:
    """Returns the paths that `a_{0,1}` stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(each) for each in itertools.product(*parts)]


def tree_of(items: Items) -> dict[str, str]:
    """Returns the same of a checkpoint, without the random streams of NNX."""
    found = {}
    for key, entry in items.entries.items():
        if "rngs" in key:
            continue
        is_array = entry.kind == "jax.Array"
        shape_or_kind = str(items.spec(key)[0]) if is_array else entry.kind
        found["/".join(map(str, key))] = shape_or_kind
    return found


QUICK = (
    "llama2_nnx025_noscan",
    "llama2_nnx025_param_only_unrolled",
)


@pytest.mark.parametrize("name", with_slow(TREES, QUICK))
def test_the_tree_is_that_of_maxtext_and_is_read_again(name, tmp_path):
    family = next(family for family in OPTIONS if name.startswith(f"{family}_"))
    options = resolved({**_SHAPE, **OPTIONS[family]}, name)
    config = experiment(options)
    weights = tiny.variables(tiny.model(config.model))
    layout = CheckpointLayout(
        "linen" if "_linen" in name else "nnx",
        scanned=not name.endswith(("noscan", "unrolled")),
    )
    moments = None
    if "param_only" not in name:
        moments = {
            "mu": weights["params"],
            "nu": jax.tree.map(abs, weights["params"]),
        }
    write(tmp_path, config, weights, moments, 3 if moments else 0, layout)
    found = MaxTextFolder(tmp_path)
    assert tree_of(found.items) == expected(name)
    again = open_folder(found)
    equal(read(again.variables), weights)
    if moments:
        assert again.step == 3
        equal(read(again.moments), moments)


NNX = ("llama2_nnx025_scan", "mixtral_nnx025_scan", "deepseek3_nnx025_scan")


def streams(options, scanned=True):
    """Returns key and shape of each array of fresh random streams."""
    layout = CheckpointLayout("nnx", scanned)
    model = tiny.model(network(options))
    target = MaxTextTarget(model, options, layout)
    paths = [binding.theirs[0] for binding in target.bindings]
    count = len([*layers_of(leaves_of(model))])
    found = fresh_streams(options, layout, count, paths)
    return {stream.key: stream.values.shape for stream in found}


@pytest.mark.parametrize("name", (*NNX, "gemma3_nnx025_scan"))
def test_fresh_random_streams_lie_where_maxtext_keeps_them(name):
    found = MaxTextFolder(FOLDER / name)
    there = {each.key: each.values.shape for each in streams_in(found.items)}
    assert streams(found.options) == there


def test_layers_that_are_not_scanned_share_the_streams_of_the_first():
    keys = streams(tiny.options("llama2"), scanned=False)
    assert {key[2:-3] for key in keys} == {("decoder", "layers_0", "self_attention")}
