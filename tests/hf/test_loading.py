"""What a folder must hold, and where its weights go."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maxfdl import graph, hf
from maxfdl.errors import UserError
from maxfdl.mutations import remat, unroll_layers
from maxfdl.run.first_state import first_state
from maxfdl.sharding import room
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.hugging_face.quantization.fp8 import block_codec
from tests import goldens, tiny
from tests.hf.variants import loaded
from tests.tensors.quantized.test_reader import written

NAME = "llama3"
WEIGHTS = goldens.weights(NAME)


@pytest.fixture
def folder(tmp_path):
    """A copy of a golden folder, which tests may change."""
    config = goldens.FOLDER / NAME / "config.json"
    shutil.copyfile(config, tmp_path / "config.json")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return tmp_path


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder, new_name, **extra):
    """Writes the weights under other names, with tensors that were not there."""
    weights = {new_name(name): x for name, x in WEIGHTS.items()} | extra
    save_file(weights, folder / "model.safetensors")


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def refusal(folder) -> str:
    with pytest.raises(UserError) as error:
        hf.load(folder)
    return str(error.value)


def test_the_config_is_an_experiment_that_mutations_change():
    config = remat(unroll_layers(loaded(NAME).config), policy="full")
    experiment = graph.build(config)
    assert experiment.name == NAME
    tokens = jnp.asarray(goldens.expected(NAME)["input_ids"])
    variables = loaded(NAME).variables
    np.testing.assert_allclose(
        experiment.make_model().logits(variables, tokens),
        loaded(NAME).model.logits(variables, tokens),
        atol=1e-5,
    )


def test_the_config_survives_json():
    config = loaded(NAME).config
    assert graph.load_json(graph.dump_json(config)) == config


def test_every_tensor_is_in_its_place():
    params = loaded(NAME).variables["params"]
    layers = params["decoder"]["stacks_0"]["layers_0"]
    for i in range(4):
        theirs = WEIGHTS[f"model.layers.{i}.self_attn.k_proj.weight"]
        ours = layers["attention"]["key"]["kernel"][i]
        np.testing.assert_array_equal(ours, theirs.T.reshape(40, 2, 16))
    table = params["embedding"]["table"]
    np.testing.assert_array_equal(table, WEIGHTS["model.embed_tokens.weight"])


def test_all_problems_are_in_one_report(folder):
    weights = {k: v for k, v in WEIGHTS.items() if k != "model.norm.weight"}
    del weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.layers.0.mlp.down_proj.weight"] = np.zeros((40, 45), np.float32)
    weights["model.layers.4.mlp.up_proj.weight"] = np.zeros((1,), np.float32)
    weights["model.layers.1.self_attn.k_proj.weight"] = np.zeros((32, 40), np.int8)
    save_file(weights, folder / "model.safetensors")
    assert refusal(folder).splitlines() == [
        f"{folder} does not hold the tensors of its config.json:",
        "  missing: model.norm.weight, model.layers.2.mlp.up_proj.weight",
        "  in no place of the model: model.layers.4.mlp.up_proj.weight",
        "  of another shape: model.layers.0.mlp.down_proj.weight [40, 45] (must be"
        " [40, 44])",
        "  of a type that is not read: model.layers.1.self_attn.k_proj.weight I8",
    ]


def test_buffers_and_a_tied_head_are_skipped(folder):
    rename(
        folder,
        lambda name: name,
        **{
            "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
            "lm_head.weight": WEIGHTS["model.embed_tokens.weight"],
        },
    )
    assert_same(hf.load(folder).variables, loaded(NAME).variables)


@pytest.mark.parametrize(
    "new_name",
    [
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("model.", "model.language_model."),
        lambda name: f"language_model.{name}",
    ],
    ids=["base model", "language model inside", "language model outside"],
)
def test_prefixes_of_other_classes_are_understood(folder, new_name):
    vision = {"vision_tower.layers.0.weight": np.zeros(3, np.float32)}
    rename(folder, new_name, **vision)
    assert_same(hf.load(folder).variables, loaded(NAME).variables)


def test_several_files_are_read_by_their_index(folder):
    names = sorted(WEIGHTS)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: WEIGHTS[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_same(hf.load(folder).variables, loaded(NAME).variables)
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    assert 'names "../model.safetensors", which is no file beside it' in refusal(folder)


def test_a_single_file_is_read_before_an_index_which_is_said(folder, capsys):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert_same(hf.load(folder).variables, loaded(NAME).variables)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"{folder} holds model.safetensors and {index.name}; the first is read"
    )


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a FIFO"), (os.mkdir, "a folder")]
)
def test_what_is_no_file_is_refused_unopened(folder, file, make, kind):
    (folder / file).unlink()
    make(folder / file)
    assert refusal(folder) == f"{folder / file} must be a file, but it is {kind}."


def test_a_missing_shard_is_named(folder):
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    weight_map = {"a": "model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert f"names {json.dumps(weight_map['a'])}, which is no file" in refusal(folder)
    (folder / weight_map["a"]).symlink_to("blobs/gone")
    assert "model-00001-of-00002.safetensors cannot be read: no such" in refusal(folder)


def test_float16_is_read_although_training_in_it_takes_more(folder):
    halves = {name: x.astype(np.float16) for name, x in WEIGHTS.items()}
    save_file(halves, folder / "model.safetensors")
    change_config(folder, dtype="float16")
    assert hf.load(folder).config.model.param_dtype == "float16"


@pytest.mark.parametrize("backend", ["nnx", "linen"])
def test_a_head_that_differs_is_kept_although_the_config_ties_it(backend, capsys):
    path = goldens.FOLDER / "cases" / "tied_but_different_head"
    found = hf.load(path, backend)
    expected = load_file(path / "golden.safetensors")
    logits = found.model.logits(found.variables, expected["input_ids"])
    np.testing.assert_allclose(logits, expected["logits"], atol=2e-5)
    (line,) = capsys.readouterr().err.splitlines()
    assert "tie_word_embeddings (true) and a head that differs" in line


def test_a_tied_head_may_stand_for_the_embedding(folder):
    embedding = "model.embed_tokens.weight"
    rename(folder, lambda name: "lm_head.weight" if name == embedding else name)
    assert_same(hf.load(folder).variables, loaded(NAME).variables)


def test_weights_that_the_model_does_without_are_told(folder, capsys):
    vision = {f"vision_tower.{i}.weight": np.zeros(3, np.float32) for i in range(2)}
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    rename(folder, lambda name: name, **vision, **buffer)
    hf.load(folder)
    said = capsys.readouterr().err
    assert said == f"{folder}: 2 tensors of other modalities are not used\n"


def test_weights_that_are_not_finite_are_refused_unless_they_are_allowed(
    folder, capsys
):
    bad = "model.layers.1.mlp.up_proj.weight"
    rename(folder, lambda name: name, **{bad: np.full_like(WEIGHTS[bad], np.nan)})
    file = folder / "model.safetensors"
    assert refusal(folder).startswith(f"{file}: {bad} holds nan at [0, 0], and ")
    read = hf.load(folder, allow_non_finite=True).variables
    layers = read["params"]["decoder"]["stacks_0"]["layers_0"]
    assert np.isnan(layers["mlp"]["up"]["kernel"][1]).all()
    assert f"{bad} holds nan" in capsys.readouterr().err
    with pytest.raises(UserError, match=f"{bad} holds nan"):
        first_state(tiny.program(loaded(NAME).config), str(folder))


def test_weights_too_large_for_their_new_type_are_refused(folder):
    bad = "model.norm.weight"
    rename(folder, lambda name: name, **{bad: np.full_like(WEIGHTS[bad], 1e5)})
    with pytest.raises(UserError, match=f"{bad} holds 100000.0, too large for float16"):
        hf.load(folder, param_dtype="float16")


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pickles only, which could run any code" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "holds no *.safetensors file" in refusal(folder)


def test_what_is_no_folder_is_refused(tmp_path):
    assert "must be a folder with a config.json" in refusal("meta-llama/Llama-2-7b")


def test_weights_in_few_bits_are_read_as_what_they_stand_for(folder, capsys):
    codec, name = block_codec(16, 24), "model.layers.1.mlp.up_proj.weight"
    parts = codec.encode(WEIGHTS[name])
    tensors = {name + part: x for part, x in parts.items()}
    scale = {"model.layers.1.mlp.up_proj.input_scale": np.ones(1, np.float32)}
    rest = {key: x for key, x in WEIGHTS.items() if key != name}
    written(folder, rest | tensors | scale)
    sides = {"quant_method": "fp8", "weight_block_size": [16, 24]}
    change_config(folder, quantization_config=sides, dtype="bfloat16")
    layers = hf.load(folder).variables["params"]["decoder"]["stacks_0"]["layers_0"]
    kernel = np.asarray(layers["mlp"]["up"]["kernel"][1])
    expected = codec.decode(parts, WEIGHTS[name].shape).T
    assert kernel.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(kernel, expected.astype(kernel.dtype))
    assert np.abs(expected - WEIGHTS[name].T).max() > 0
    said = capsys.readouterr().err
    assert said == f"{folder}: 1 tensors of quantised activations are not used\n"
    change_config(folder, quantization_config={"quant_method": "gptq"})
    problem = 'quantization_config.quant_method ("gptq") must be one of compressed-'
    assert refusal(folder).startswith(f"{folder / 'config.json'}: {problem}")


def test_code_of_the_folder_is_not_run(folder):
    (folder / "modeling.py").write_text("raise SystemExit('was run')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert_same(hf.load(folder).variables, loaded(NAME).variables)
    change_config(folder, model_type="mine")
    assert "Code that comes with a checkpoint is never run" in refusal(folder)


def test_the_types_are_those_of_the_folder_unless_others_are_asked_for(folder):
    halves = {name: x.astype(ml_dtypes.bfloat16) for name, x in WEIGHTS.items()}
    save_file(halves, folder / "model.safetensors")
    change_config(folder, dtype="bfloat16")
    stored = hf.load(folder)
    model = stored.config.model
    assert (model.dtype, model.param_dtype) == ("bfloat16", "bfloat16")
    table = stored.variables["params"]["embedding"]["table"]
    assert table.dtype == jnp.bfloat16
    name = "model.embed_tokens.weight"
    assert np.asarray(table).tobytes() == halves[name].tobytes()
    wide = hf.load(folder, dtype="float32", param_dtype="float32")
    assert (wide.config.model.dtype, wide.config.model.param_dtype) == (
        "float32",
        "float32",
    )
    np.testing.assert_array_equal(
        wide.variables["params"]["embedding"]["table"], halves[name].astype(np.float32)
    )


def test_the_tokenizer_of_the_folder_is_that_of_the_experiment(folder):
    (folder / "tokenizer.json").write_text("{}")
    tokenizer = hf.load(folder).config.data.tokenizer
    assert pathlib.Path(tokenizer.file) == folder / "tokenizer.json"


def test_weights_lie_as_the_rules_say():
    mesh = MeshShape(data=1, fsdp=4, tensor=2).build(jax.devices())
    sharding = Sharding(mesh, AxisRules())
    sharded = hf.load(goldens.FOLDER / NAME, sharding=sharding)
    assert_same(sharded.variables, loaded(NAME).variables)

    def check(leaf, parameter):
        assert leaf.sharding.is_equivalent_to(
            sharding.named(parameter.full_axes), leaf.ndim
        )

    params = sharded.variables["params"]
    jax.tree.map(check, params, sharded.model.parameters())


def test_a_mesh_that_does_not_cut_the_weights_is_refused_before_they_are_read():
    mesh = MeshShape(data=1, fsdp=1, tensor=8).build(jax.devices())
    with pytest.raises(
        UserError, match="dim 'kv_heads' of size 2 cannot be cut into 8"
    ):
        hf.load(goldens.FOLDER / NAME, sharding=Sharding(mesh, AxisRules()))


def test_a_part_of_an_array_lies_as_the_whole_does():
    # By itself, the part would be cut along `embed`, whose 40 features 16 do not cut.
    mesh = MeshShape(data=1, fsdp=4, tensor=2).build(jax.devices())
    rules = AxisRules(layers=("fsdp",), embed=("fsdp", "tensor"))
    sharded = hf.load(goldens.FOLDER / NAME, sharding=Sharding(mesh, rules))
    assert_same(sharded.variables, loaded(NAME).variables)


def test_weights_that_the_memory_does_not_hold_are_refused(monkeypatch):
    monkeypatch.setattr(room, "host_bytes", lambda: 100_000)
    with pytest.raises(UserError) as error:
        hf.load(goldens.FOLDER / NAME)
    assert str(error.value).startswith(f"the weights in {goldens.FOLDER / NAME} need 2")
    assert "on this host" in str(error.value) and "97.7 KiB" in str(error.value)


BIG = {
    "model_type": "llama",
    "vocab_size": 16_000,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
}
MEASURE = """\
import resource, sys
from maxfdl import hf

small, big, dtype = sys.argv[1:]
hf.load(small)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
loaded = hf.load(big, param_dtype=dtype)
print(peak() - before)
"""


@pytest.mark.slow
def test_loading_needs_little_more_than_what_it_loads(tmp_path):
    layer = {
        "input_layernorm": (512,),
        "post_attention_layernorm": (512,),
        **{f"self_attn.{x}_proj": (512, 512) for x in "qkvo"},
        **{f"mlp.{x}_proj": (2048, 512) for x in ("gate", "up")},
        "mlp.down_proj": (512, 2048),
    }
    shapes = {
        "model.embed_tokens": (16_000, 512),
        "lm_head": (16_000, 512),
        "model.norm": (512,),
        **{
            f"model.layers.{i}.{name}": shape
            for i in range(BIG["num_hidden_layers"])
            for name, shape in layer.items()
        },
    }
    weights = {
        f"{name}.weight": np.ones(shape, ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }
    (tmp_path / "config.json").write_text(json.dumps(BIG | {"dtype": "bfloat16"}))
    save_file(weights, tmp_path / "model.safetensors")
    total = sum(x.nbytes for x in weights.values())
    largest = max(x.nbytes for x in weights.values())
    assert total > 150e6
    small = goldens.FOLDER / "llama2"
    for dtype, size in (("bfloat16", 1), ("float32", 2)):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, small, tmp_path, dtype],
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        grown = int(done.stdout)
        # The part under way is there as it was read and as the device has it.
        assert grown < size * (total + largest) + largest + 40e6, (dtype, grown)
