"""Our writer against the library's reader, and our reader against its writer."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library
from safetensors import safe_open

from maxfdl.errors import UserError
from maxfdl.tensors import safetensors as tensors_module
from maxfdl.tensors.safetensors import TensorReader, TensorWriter


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    return {
        "model.a": rng.normal(size=(3, 5)).astype(np.float32),
        "model.b": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "model.c": rng.normal(size=(2, 2, 2)).astype(np.float16),
    }


def write(folder, values, order=None, **kwargs):
    specs = {name: (x.shape, x.dtype) for name, x in values.items()}
    with TensorWriter(folder, specs, **kwargs) as writer:
        for name in order or values:
            writer.write(name, values[name])


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for name, x in expected.items():
        assert (actual[name].shape, actual[name].dtype) == (x.shape, x.dtype)
        assert actual[name].tobytes() == x.tobytes()


def test_the_library_reads_what_is_written(values, tmp_path):
    write(tmp_path, values, order=["model.c", "model.a", "model.b"])
    path = tmp_path / "model.safetensors"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert_same_bits(library.load_file(path), values)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_what_the_library_writes_is_read(values, tmp_path):
    library.save_file(values, tmp_path / "x.safetensors")
    reader = TensorReader([tmp_path / "x.safetensors"])
    read = {name: reader.read(name) for name in reader.names()}
    assert_same_bits(read, values)
    assert reader.shape("model.a") == (3, 5)
    assert reader.code("model.b") == "BF16"


def test_values_that_do_not_lie_in_one_piece_are_written_right(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write(tmp_path, {"x": x})
    read = library.load_file(tmp_path / "model.safetensors")["x"]
    np.testing.assert_array_equal(read, x)


def test_files_are_cut_in_order_with_an_index(values, tmp_path):
    write(tmp_path, values, shard_bytes=76)  # 60 and 14 bytes; 16 bytes
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index["weight_map"] == {
        "model.a": first,
        "model.b": first,
        "model.c": second,
    }
    assert index["metadata"] == {"total_size": 90}
    parts = library.load_file(tmp_path / first) | library.load_file(tmp_path / second)
    assert_same_bits(parts, values)


def test_a_tensor_larger_than_a_file_has_one_to_itself(values, tmp_path):
    write(tmp_path, values, shard_bytes=8)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_tensors_are_equal_if_all_their_values_are(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors_module, "_PIECE", 100)  # several rows of several pieces
    x = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    other = x.copy()
    other[-1, -1] += 1.0
    tensors = {"a": x, "b": x, "c": other, "d": x[:-1], "e": x.astype(np.int32)}
    library.save_file(tensors, tmp_path / "x.safetensors")
    reader = TensorReader([tmp_path / "x.safetensors"])
    assert reader.are_equal("a", "b")
    assert not any(reader.are_equal("a", each) for each in "cde")


def test_a_tensor_that_two_files_hold_is_refused(values, tmp_path):
    for file in ("x.safetensors", "y.safetensors"):
        library.save_file(values, tmp_path / file)
    files = [tmp_path / "x.safetensors", tmp_path / "y.safetensors"]
    with pytest.raises(UserError, match="y.safetensors and x.safetensors beside it"):
        TensorReader(files)


def test_a_file_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    library.save_file({"x": np.zeros(100, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="cannot be read as safetensors .*fetch it"):
        TensorReader([path])
