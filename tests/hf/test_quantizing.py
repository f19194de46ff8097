"""Folders with kernels in few bits: written tensor by tensor, and read again."""

import itertools
import json
import math
import pathlib
import random
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fdl_configs.families import network_of
from fdl_configs.hugging_face import fine_tuning
from maxfdl import graph, hf
from maxfdl.errors import UserError
from maxfdl.model import NnxModel
from maxfdl.mutations import quantize_weights
from maxfdl.tensors.matching import their_shapes
from maxfdl.tensors.names import table_of
from maxfdl.tensors.quantized.codes import PackedInt
from maxfdl.tensors.quantized.reader import QuantizedReader
from maxfdl.tensors.safetensors import TensorReader, TensorWriter
from maxfdl.tensors.table import bind, leaves_of
from maxfdl.tensors.weights import read_weights
from tests import goldens
from tests.hf import damage
from tests.hf.variants import each_family, loaded
from tests.tensors.quantized.test_reader import written

FORMATS = {"int8": {}, "int4": {}, "fp8": {}, "fp8_block": {"block_size": 16}}
GPT_OSS = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
STAY = ("embed", "norm", "lm_head", "bias", ".gate.", "router", "conv1d")


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def config_of(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_of(folder: pathlib.Path) -> QuantizedReader:
    tensors = hf.Folder(folder).tensors()
    assert isinstance(tensors, QuantizedReader)
    return tensors


def made(folder: pathlib.Path, base: str, dtype: Any = np.float32, **changes: Any):
    """Makes a folder of random weights, with the config.json of a golden but for
    `changes`."""
    folder.mkdir(exist_ok=True)
    name = np.dtype(dtype).name
    config = config_of(goldens.FOLDER / base) | changes | {"dtype": name}
    (folder / "config.json").write_text(json.dumps(config))
    known = hf.Folder(folder)
    model = NnxModel(module=graph.build(network_of(known)))
    bindings = bind(table_of(known.config["model_type"]), leaves_of(model))
    shapes = their_shapes(bindings, known.config)
    rng = np.random.default_rng(0)
    specs = {name: (shape, np.dtype(dtype)) for name, shape in shapes.items()}
    with TensorWriter(folder, specs) as writer:
        for name, shape in shapes.items():
            values = rng.standard_normal(shape, np.float32) / math.sqrt(shape[-1])
            writer.write(name, values.astype(dtype))
    return folder


@pytest.mark.parametrize("family", each_family("llama3", "deepseek_v3", "qwen3_next"))
def test_kernels_are_stored_and_nothing_else_is_changed(family, tmp_path):
    source = goldens.FOLDER / family
    if family == "gpt2":  # its kernels are [inputs, outputs]
        with pytest.raises(UserError, match="no place for any kernel of this gpt2"):
            hf.quantize(source, tmp_path, "int8")
        return
    hf.quantize(source, tmp_path, "int8")
    tensors, weights = tensors_of(tmp_path), goldens.weights(family)
    assert {*tensors.names()} == weights.keys()
    for name, w in weights.items():
        stored, found = tensors.stored(name), tensors.read(name)
        assert (stored is not None) == (w.ndim == 2 and not _stays(name)), name
        if stored is None:
            assert found.tobytes() == w.tobytes()
            continue
        expected = stored.codec.decode(stored.codec.encode(w), w.shape)
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - w).max() <= np.abs(w).max() / 127 * 0.51
    written, before = config_of(tmp_path), config_of(source)
    said = written.pop("quantization_config")
    assert written == before
    kept = {name.removesuffix(".weight") for name in weights if _is_router(name)}
    assert {*said["ignore"]} >= kept | {"lm_head"}


def _stays(name: str) -> bool:
    return any(each in name for each in STAY) or name.endswith(
        "shared_expert_gate.weight"
    )


def _is_router(name: str) -> bool:
    return name.endswith((".gate.weight", "router.weight"))


@pytest.mark.parametrize("name", FORMATS)
def test_of_the_command_and_of_variables_the_files_are_the_same(name, tmp_path):
    """And so they are if what was written is read and written again."""
    source, found = goldens.FOLDER / "llama3", loaded("llama3")
    folders = [tmp_path / each for each in ("folder", "variables", "again")]
    hf.quantize(source, folders[0], name, **FORMATS[name])
    hf.save(
        folders[1], found.config, found.variables, source=source, format=name,
        **FORMATS[name],
    )  # fmt: skip
    hf.quantize(folders[0], folders[2], name, **FORMATS[name])
    first, *others = map(files, folders)
    assert all(other == first for other in others)
    assert (
        len(first["model.safetensors"])
        < 0.5 * source.joinpath("model.safetensors").stat().st_size
    )


def test_what_is_saved_of_a_folder_in_few_bits_is_not_said_to_be(tmp_path):
    hf.quantize(goldens.FOLDER / "llama3", tmp_path / "few", "int4")
    found = hf.load(tmp_path / "few")
    hf.save(tmp_path / "full", found.config, found.variables)
    assert "quantization_config" not in config_of(tmp_path / "full")
    few, full = (hf.Folder(tmp_path / x).tensors() for x in ("few", "full"))
    assert {*few.names()} == {*full.names()}
    for name in few.names():
        np.testing.assert_array_equal(few.read(name), full.read(name))


def test_experts_of_gpt_oss_are_stored_as_its_files_have_them(tmp_path, capsys):
    source = made(tmp_path / "source", "gpt_oss", ml_dtypes.bfloat16, **GPT_OSS)
    hf.quantize(source, tmp_path / "out", "mxfp4")
    experts = "model.layers.1.mlp.experts."
    out = tensors_of(tmp_path / "out")
    for name, shape in {
        f"{experts}gate_up_proj_blocks": (4, 192, 2, 16),
        f"{experts}gate_up_proj_scales": (4, 192, 2),
        f"{experts}down_proj_blocks": (4, 64, 3, 16),
        f"{experts}down_proj_scales": (4, 64, 3),
    }.items():
        assert out.holds(name)
        assert super(QuantizedReader, out).shape(name) == shape
    before = hf.Folder(source).tensors()
    for name in before.names():
        assert (out.stored(name) is not None) == name.endswith(("up_proj", "down_proj"))
        assert out.shape(name) == before.shape(name)
    assert capsys.readouterr().err == ""
    said = config_of(tmp_path / "out")["quantization_config"]
    assert said["quant_method"] == "mxfp4"
    assert "model.layers.0.self_attn.q_proj" in said["modules_to_not_convert"]


def nobodys(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Gives a folder in few bits random codes, with scales that none would choose."""
    file, rng = folder / "model.safetensors", np.random.default_rng(0)
    reader = TensorReader([file])
    tensors = {name: reader.read(name) for name in sorted(reader.names())}
    for name, x in tensors.items():
        if name.endswith("_packed"):
            shape = tuple(tensors[name.replace("_packed", "_shape")])
            bits = 32 * x.shape[-1] // shape[-1]
            most = 2 ** (bits - 1)
            codes = rng.integers(-most, most, shape).astype(np.float32)
            tensors[name] = PackedInt(bits).pack(codes)
        elif x.dtype == np.uint8:
            least, most = (110, 130) if name.endswith("_scales") else (0, 256)
            tensors[name] = rng.integers(least, most, x.shape).astype(np.uint8)
        elif x.dtype == ml_dtypes.float8_e4m3fn:
            codes = rng.integers(0, 127, x.shape) + 128 * rng.integers(0, 2, x.shape)
            tensors[name] = codes.astype(np.uint8).view(x.dtype)
        elif name.endswith(("_scale", "_scale_inv")):
            tensors[name] = (x * rng.uniform(0.5, 1, x.shape)).astype(x.dtype)
    written(folder, tensors)
    return tensors


@pytest.mark.parametrize(
    ("name", "size", "storage"),
    [
        ("int4", 4, {"format": "int4", "group": 4}),
        pytest.param("int8", None, {"format": "int8"}, marks=pytest.mark.slow),
        ("fp8_block", 16, {"format": "fp8", "group": 16}),
        ("mxfp4", None, {"format": "mxfp4", "only": ("experts",)}),
    ],
)
def test_a_graph_that_stores_kernels_so_keeps_codes_and_scales(
    name, size, storage, tmp_path
):
    folder, again = tmp_path / "folder", tmp_path / "again"
    source = goldens.FOLDER / "llama3"
    if name == "mxfp4":
        source = made(tmp_path / "source", "gpt_oss", **GPT_OSS)
    hf.quantize(source, folder, name, block_size=size)
    tensors = nobodys(folder)
    config = quantize_weights(fine_tuning(str(folder)), **storage)
    model = NnxModel(module=graph.build(config.model))
    variables = read_weights(hf.Folder(folder), model)
    hf.save(again, config, variables, format=name, block_size=size)
    after = TensorReader([again / "model.safetensors"])
    assert {*after.names()} == tensors.keys()
    for each, x in tensors.items():
        assert after.read(each).tobytes() == x.tobytes(), each


def test_weights_that_are_not_finite_are_refused(tmp_path):
    source = made(tmp_path / "source", "llama3", num_hidden_layers=1)
    file, bad = source / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    tensors = {name: np.array(x) for name, x in goldens.numpy.load_file(file).items()}
    tensors[bad][2, 3] = np.inf
    goldens.numpy.save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{bad} holds inf at \[2, 3\]"):
        hf.quantize(source, tmp_path / "out", "int8")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_leaves_the_older_one_whole(tmp_path, monkeypatch):
    hf.quantize(goldens.FOLDER / "llama3", tmp_path, "int8", shard_bytes=20_000)
    before, write = files(tmp_path), TensorWriter.write

    def full(writer, name, values):
        if name.endswith("layers.2.mlp.up_proj.weight_packed"):
            raise OSError(28, "No space left on device")
        write(writer, name, values)

    monkeypatch.setattr(TensorWriter, "write", full)
    with pytest.raises(UserError, match=r"No space left on device.*it is as it was"):
        hf.quantize(goldens.FOLDER / "llama3", tmp_path, "int4")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["int4", "fp8_block"])
def test_a_damaged_quantization_config_is_refused_or_read(name, tmp_path):
    hf.quantize(goldens.FOLDER / "llama3", tmp_path, name, **FORMATS[name])
    config, key = config_of(tmp_path), "quantization_config"
    faults = damage.damaged({key: config[key]}, random.Random(0))
    refused = 0
    for text in itertools.islice(faults, 100):
        try:
            damaged = json.loads(text)
        except ValueError:
            continue
        (tmp_path / "config.json").write_text(json.dumps(config | damaged))
        try:
            tensors = hf.Folder(tmp_path).tensors()
            for each in tensors.names()[-2:]:
                tensors.read(each)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 20


MEASURE = """\
import resource, sys
from maxfdl import hf

small, big, out, name = sys.argv[1:]
hf.quantize(small, f"{out}/small", name)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
hf.quantize(big, f"{out}/big", name)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "fp8_block"])
def test_memory_holds_no_more_than_what_is_written_and_two_layers(name, tmp_path):
    """It holds less: one tensor at a time, and nothing of what is written."""
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 14}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 64}
    big = made(tmp_path / "big", "llama2", ml_dtypes.bfloat16, **sizes, **heads)
    total = (big / "model.safetensors").stat().st_size
    layer = total // sizes["num_hidden_layers"]
    assert total > 380e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, goldens.FOLDER / "llama2", big, tmp_path, name],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    grown = int(done.stdout)
    assert grown < 2 * layer + 20e6, (grown, layer)
