"""Damaged folders: refused in one sentence, or read right; never a traceback."""

import functools
import itertools
import json
import random
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from fdl_configs.families import network_of
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.model import NnxModel
from maxfdl.tensors.hugging_face.folder import Folder
from maxfdl.tensors.matching import match
from maxfdl.tensors.names import table_of
from maxfdl.tensors.table import bind, leaves_of
from maxfdl.tensors.weights import read_weights
from tests import goldens
from tests.hf.damage import damaged
from tests.hf.variants import FAMILIES, loaded

CASES = 8  # a family
NAME = "llama2"
INDEX = "model.safetensors.index.json"


def refused(read, folder) -> bool:
    """Says whether `read()` refuses a folder, in words that a user can read."""
    try:
        read()
    except UserError as error:
        assert str(folder) in str(error) and len(str(error)) < 1000, error
        return True
    return False


@pytest.mark.parametrize("name", FAMILIES)
def test_a_damaged_config_is_refused_or_describes_a_network(name, tmp_path):
    path = tmp_path / "config.json"
    whole = json.loads((goldens.FOLDER / name / path.name).read_text())
    for data in itertools.islice(damaged(whole, random.Random(name)), CASES):
        path.write_bytes(data)
        refused(lambda: network_of(Folder(tmp_path)), tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden folder in two shards."""
    config = goldens.FOLDER / NAME / "config.json"
    (tmp_path / "config.json").write_bytes(config.read_bytes())
    weights = goldens.weights(NAME)
    files = {}
    for number, name in enumerate(sorted(weights)):
        files.setdefault(f"{number % 2}.safetensors", []).append(name)
    for file, names in files.items():
        save_file({name: weights[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


@functools.cache
def bindings():
    return bind(table_of("llama"), leaves_of(loaded(NAME).model))


def read_or_refuse(folder) -> bool:
    """Reads a folder; what is read must be the golden weights. Says if any was."""

    def read():
        found = Folder(folder)
        tensors = found.tensors()
        table = table_of("llama")
        spelled = match(bindings(), tensors, table, found.config, folder)
        weights = {name: tensors.read(real) for name, real in spelled.items()}
        assert weights.keys() == goldens.weights(NAME).keys()
        for name, values in goldens.weights(NAME).items():
            np.testing.assert_array_equal(weights[name], values)

    return not refused(read, folder)


def test_a_damaged_index_is_refused_or_does_not_matter(folder):
    whole = json.loads((folder / INDEX).read_text())
    for data in itertools.islice(damaged(whole, random.Random(0)), 40):
        (folder / INDEX).write_bytes(data)
        read_or_refuse(folder)


def test_a_damaged_header_is_refused_or_does_not_matter(folder):
    path = folder / "0.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for data in itertools.islice(damaged(header, random.Random(0)), 100):
        path.write_bytes(struct.pack("<Q", len(data)) + data + whole[8 + length :])
        read_or_refuse(folder)


def test_a_file_of_weights_that_is_cut_or_flipped_is_refused(folder):
    path, rng = folder / "0.safetensors", random.Random(0)
    whole = path.read_bytes()
    for _ in range(20):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        assert not read_or_refuse(folder)
        flipped = bytearray(whole)
        flipped[rng.randrange(8)] ^= 1 << rng.randrange(8)  # the header's length
        path.write_bytes(flipped)
        assert not read_or_refuse(folder)


def config_with(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers .1000000000. must be a"),
        ({"hidden_size": 10**12}, r"hidden_size .1000000000000. must be a whole"),
        ({"vocab_size": -1}, r"vocab_size .-1. must be a whole number from 1"),
        ({"rms_norm_eps": None}, "rms_norm_eps .null. must be a finite number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings .1. must be true or false"),
        ({"hidden_act": ["silu"]}, "hidden_act .a list of 1. must be a string"),
        ({"hidden_act": "sin"}, "config.json: hidden_act .sin. must be one of"),
        ({"head_dim": None, "num_attention_heads": 3}, "must be a multiple of num_att"),
        ({"rope_parameters": "x"}, 'rope_parameters ."x". must be an object'),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing, which rope_type"),
        ({"rope_scaling": {"type": 1}}, r"rope_scaling.type .1. must be a string"),
        ({"dtype": "int8"}, 'dtype ."int8". must be one of float32, bfloat16'),
        ({"text_config": 3}, "text_config .3. must be an object"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(folder, changes, sentence):
    config_with(folder, **changes)
    with pytest.raises(UserError, match=sentence):
        network_of(Folder(folder))


def test_what_a_family_does_not_read_may_be_anything(folder):
    config_with(folder, n_routed_experts="x", scale_attn_weights=None, mystery=[])
    assert network_of(Folder(folder)) == loaded(NAME).config.model


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("deepseek_v3", {"n_group": 3}, "n_group .3. must divide n_routed_experts"),
        ("deepseek_v3", {"topk_group": 9}, "topk_group .9. must be from 1 to n_group"),
        ("glm4_moe", {"n_group": 0}, "n_group .0. must divide"),
        ("mixtral", {"num_experts_per_tok": 99}, "k .99. must not exceed num_experts"),
        (
            "phi4_mini",
            {"rope_parameters": {"rope_type": "llama3"}},
            "factor|default or",
        ),
        ("qwen2", {"num_key_value_heads": 3}, "must be a multiple of num_kv_heads"),
        (
            "llama3",
            {"rope_parameters": {"full_attention": {}}},
            "must be one rotation for all layers of a llama",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(
    tmp_path, family, changes, sentence
):
    whole = json.loads((goldens.FOLDER / family / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(whole | changes))
    with pytest.raises(UserError, match=sentence) as error:
        network_of(Folder(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json: ")


def test_more_layers_than_tensors_are_refused_before_their_names_are_made(folder):
    config_with(folder, num_hidden_layers=10_000)
    model = NnxModel(module=graph.build(network_of(Folder(folder))))
    with pytest.raises(UserError, match="fewer than the 10,000 layers or experts"):
        read_weights(Folder(folder), model)
