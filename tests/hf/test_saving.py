"""Saving is loading backwards: names, shapes, bits, and the rest of the folder."""

import json
import shutil

import fiddle as fdl
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fdl_configs.families import family_of
from maxfdl import graph, hf
from maxfdl.data import ByteTokenizer
from maxfdl.errors import UserError
from maxfdl.hf.describing import describe
from maxfdl.mutations import (
    compute_dtype,
    enable_fp8,
    remat,
    to_linen,
    unroll_layers,
)
from maxfdl.ops.mask import Causal
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.hugging_face.config import normalised
from maxfdl.tensors.safetensors import TensorWriter
from tests import goldens
from tests.hf.variants import each_family, loaded


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def assert_same_tensors(folder, name, file="model.safetensors"):
    saved, source = load_file(folder / file), goldens.weights(name)
    assert saved.keys() == source.keys()
    for key, x in source.items():
        assert (saved[key].shape, saved[key].dtype) == (x.shape, x.dtype), key
        assert saved[key].tobytes() == x.tobytes(), key


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("name", each_family("gpt2", "qwen3_next"))
def test_load_save_load_is_equal_to_the_bit(name, tmp_path):
    hf.save(tmp_path, loaded(name).config, loaded(name).variables)
    assert_same_tensors(tmp_path, name)
    assert config_of(tmp_path) == config_of(goldens.FOLDER / name)
    again = hf.load(tmp_path)
    assert_same(again.variables, loaded(name).variables)
    assert again.config.model == loaded(name).config.model


@pytest.mark.parametrize("name", each_family("gemma3", "deepseek_v3"))
def test_a_graph_alone_is_enough_to_write_its_config(name, tmp_path):
    # Some graphs are those of two families, so that theirs has to be named.
    family = family_of(config_of(goldens.FOLDER / name)["model_type"]).name
    network = loaded(name).config.model
    hf.save(tmp_path, network, loaded(name).variables, family=family)
    assert_same_tensors(tmp_path, name)
    written, source = config_of(tmp_path), config_of(goldens.FOLDER / name)
    for key in ("architectures", "model_type", "dtype"):
        assert written[key] == source[key]
    assert hf.load(tmp_path).config.model == loaded(name).config.model
    assert normalised(written) == written | {"dtype": "float32"}


@pytest.mark.parametrize(
    "mutation",
    [to_linen, unroll_layers, remat, compute_dtype],
    ids=lambda mutation: mutation.__name__,
)
def test_how_a_network_runs_does_not_matter(mutation, tmp_path):
    config = mutation(loaded("llama3").config)
    hf.save(tmp_path, config, loaded("llama3").variables)
    assert_same_tensors(tmp_path, "llama3")
    assert hf.load(tmp_path).config.model == loaded("llama3").config.model


def test_a_changed_network_keeps_the_family_that_it_came_from(tmp_path):
    # Without a window, this is a Llama by its graph, whose names are others.
    config = graph.copy(loaded("phi3").config)
    for layer in config.model.decoder.stacks[0].layers:
        layer.attention.mask = fdl.Config(Causal)
    assert describe(config.model)["model_type"] == "llama"
    hf.save(tmp_path, config, loaded("phi3").variables)
    assert_same_tensors(tmp_path, "phi3")
    assert config_of(tmp_path)["sliding_window"] is None


def test_a_network_that_was_changed_has_the_config_of_the_change(tmp_path):
    config = graph.copy(loaded("llama3").config)
    config.model.final_norm.epsilon = 1e-6
    for layer in config.model.decoder.stacks[0].layers:
        layer.attention_norm.epsilon = 1e-6
    source = goldens.FOLDER / "llama3"
    hf.save(tmp_path, config, loaded("llama3").variables, source=source)
    written = config_of(tmp_path)
    assert written["rms_norm_eps"] == 1e-6
    # What a graph does not say comes from the source.
    kept = config_of(source)["max_position_embeddings"]
    assert written["max_position_embeddings"] == kept


def test_a_network_that_no_config_describes_is_refused(tmp_path):
    config = graph.copy(loaded("llama3").config)
    config.model.final_norm.epsilon = 0.5  # unlike those inside the layers
    with pytest.raises(UserError, match="no config.json describes this graph: it is"):
        hf.save(tmp_path, config, loaded("llama3").variables)
    with pytest.raises(UserError, match="family .lama. must be one of .*llama"):
        describe(config.model, family="lama")


def test_arrays_are_written_in_their_type(tmp_path):
    narrow = hf.load(goldens.FOLDER / "llama2", param_dtype="bfloat16")
    hf.save(tmp_path, narrow.config, narrow.variables)
    assert config_of(tmp_path)["dtype"] == "bfloat16"
    again = hf.load(tmp_path)
    assert again.config.model.param_dtype == "bfloat16"
    assert_same(again.variables, narrow.variables)


def test_large_models_are_cut_into_files(tmp_path):
    variables = loaded("llama2").variables
    hf.save(tmp_path, loaded("llama2").config, variables, shard_bytes=50_000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert_same(hf.load(tmp_path).variables, variables)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, 50_000), (50_000, None), (30_000, 60_000), (60_000, 30_000)],
    ids=["shards over one", "one over shards", "few over many", "many over few"],
)
def test_nothing_of_an_older_export_stays(before, after, tmp_path):
    size = {None: 10**9}
    first, second = loaded("llama2"), loaded("mistral")
    hf.save(
        tmp_path, first.config, first.variables, shard_bytes=size.get(before, before)
    )
    (tmp_path / "tokenizer.json").write_text("of the first")
    (tmp_path / "README.md").write_text("mine")
    hf.save(
        tmp_path, second.config, second.variables, shard_bytes=size.get(after, after)
    )
    alone = tmp_path / "alone"
    hf.save(alone, second.config, second.variables, shard_bytes=size.get(after, after))
    expected = {path.name: path.read_bytes() for path in alone.iterdir()}
    shutil.rmtree(alone)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == expected | {"README.md": b"mine"}
    assert_same(hf.load(tmp_path).variables, second.variables)


def test_a_failed_export_leaves_the_older_one_whole(tmp_path, monkeypatch):
    first, second = loaded("llama2"), loaded("llama3")
    hf.save(tmp_path, first.config, first.variables, shard_bytes=50_000)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write, calls = TensorWriter.write, iter(range(1000))

    def full(writer, name, values):
        if next(calls) == 7:
            raise OSError(28, "No space left on device")
        write(writer, name, values)

    monkeypatch.setattr(TensorWriter, "write", full)
    with pytest.raises(UserError, match="No space left on device.*it is as it was"):
        hf.save(tmp_path, second.config, second.variables)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_weights_that_are_not_finite_are_refused_unless_they_are_allowed(
    tmp_path, capsys
):
    found = loaded("llama2")
    params = dict(found.variables["params"])
    scale = params["final_norm"]["scale"]
    params["final_norm"] = {"scale": scale.at[3].set(np.inf)}
    variables = found.variables | {"params": params}
    with pytest.raises(UserError, match=r"model.norm.weight holds inf at \[3\]"):
        hf.save(tmp_path / "x", found.config, variables)
    assert not (tmp_path / "x").exists()
    hf.save(tmp_path / "x", found.config, variables, allow_non_finite=True)
    assert np.isinf(load_file(tmp_path / "x/model.safetensors")["model.norm.weight"][3])
    assert "model.norm.weight holds inf" in capsys.readouterr().err


def test_a_head_that_differs_is_exported_and_no_longer_said_to_be_tied(tmp_path):
    path = goldens.FOLDER / "cases" / "tied_but_different_head"
    found = hf.load(path)
    hf.save(tmp_path, found.config, found.variables, source=path)
    before, after = (load_file(p / "model.safetensors") for p in (path, tmp_path))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert config_of(tmp_path) == config_of(path) | {"tie_word_embeddings": False}


def test_sharded_arrays_are_written_whole(tmp_path):
    mesh = MeshShape(data=1, fsdp=4, tensor=2).build(jax.devices())
    folder = goldens.FOLDER / "llama3"
    sharded = hf.load(folder, sharding=Sharding(mesh, AxisRules()))
    hf.save(tmp_path, sharded.config, sharded.variables)
    assert_same_tensors(tmp_path, "llama3")


def test_a_folder_may_be_saved_onto_itself(tmp_path):
    folder = tmp_path / "llama2"
    shutil.copytree(goldens.FOLDER / "llama2", folder)
    (folder / "tokenizer.json").write_text("{}")
    found = hf.load(folder)
    hf.save(folder, found.config, found.variables, source=folder)
    assert_same_tensors(folder, "llama2")
    assert (folder / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("from_folder", [True, False])
def test_a_tokenizer_of_its_own_replaces_that_of_the_source(from_folder, tmp_path):
    """As of a run, which keeps its tokenizer: from scratch, or tuned from a folder."""
    source, own, out = (tmp_path / name for name in ("source", "own", "out"))
    shutil.copytree(goldens.FOLDER / "llama3", source)
    (source / "tokenizer.json").write_text("{}")
    own.mkdir()
    ByteTokenizer().save(own)
    hf.save(
        out,
        loaded("llama3").config.model,
        loaded("llama3").variables,
        source=source if from_folder else None,
        tokenizer=own,
    )
    for file in own.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    ids = [config_of(out)[f"{role}_token_id"] for role in ("bos", "eos", "pad")]
    from_source = config_of(source)
    kept = [from_source[f"{role}_token_id"] for role in ("bos", "eos", "pad")]
    assert ids == (kept if from_folder else [256, 257, 258])


def test_tokenizer_and_generation_files_are_passed_through(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(goldens.FOLDER / "llama2", source)
    passed = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in (*passed, "modeling_mine.py", "README.md"):
        (source / name).write_text(name)
    hf.save(target, loaded("llama2").config, loaded("llama2").variables, source=source)
    assert {path.name for path in target.iterdir()} == {
        "config.json",
        "model.safetensors",
        *passed,
    }
    assert all((target / name).read_text() == name for name in passed)


def test_products_in_few_bits_make_no_other_network(tmp_path):
    """Nor do the scales that they keep need a place in the folder."""
    found = loaded("llama3")
    config = enable_fp8(found.config, recipe="delayed")
    model = graph.build(config).make_model()
    state = jax.tree.map(StateDeclaration.first, model.state())
    hf.save(tmp_path, config, found.variables | {"state": state})
    assert_same_tensors(tmp_path, "llama3")
