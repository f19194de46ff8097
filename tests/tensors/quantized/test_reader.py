"""Weights in few bits against the libraries that write such files.

`goldens/quantized` holds the tensors of weights as compressed-tensors 0.20.0 and
transformers 5.24.0 write them, and what they read again, made once with torch 2.13.0.
"""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from maxfdl.errors import UserError
from maxfdl.outside import Values
from maxfdl.tensors.hugging_face.quantization import scheme_of
from maxfdl.tensors.quantized.reader import QuantizedReader
from maxfdl.tensors.quantized.rounded import Rounded
from maxfdl.tensors.safetensors import TensorReader, TensorWriter
from tests import goldens

FOLDER = goldens.FOLDER / "quantized"
CONFIGS: dict[str, Any] = json.loads((FOLDER / "index.json").read_text())
GOLDEN = TensorReader([FOLDER / "weights.safetensors"])
WEIGHT = "layers.0.x.weight"


def parts_of(case: str, prefix: str = "layers.0.") -> dict[str, np.ndarray]:
    """Returns the tensors of a case under the name of a layer."""
    start = f"{case}/x."
    names = [name for name in GOLDEN.names() if name.startswith(start)]
    return {
        f"{prefix}x.{name.removeprefix(start)}": GOLDEN.read(name) for name in names
    }


def written(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    specs = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    with TensorWriter(folder, specs) as writer:
        for name, x in tensors.items():
            writer.write(name, x)
    return folder / "model.safetensors"


def reader(file: pathlib.Path, config: dict[str, Any]) -> QuantizedReader:
    return QuantizedReader([file], scheme_of(Values("config.json", config)))


@pytest.mark.parametrize("case", CONFIGS)
def test_what_the_libraries_wrote_is_read_as_they_read_it(case, tmp_path):
    tensors = parts_of(case)
    plain = {"layers.0.norm.weight": np.ones(3, np.float32)}
    scales = {"layers.0.x.input_scale": np.ones(1, np.float32)}
    found = reader(written(tmp_path, tensors | plain | scales), CONFIGS[case])
    (name,) = set(found.names()) - plain.keys()
    expected = GOLDEN.read(f"{case}/expected")
    assert name == WEIGHT.replace(
        "weight", "gate_up_proj" if case == "gpt_oss" else "weight"
    )
    assert found.shape(name) == expected.shape and found.code(name) == "F32"
    assert found.of_activations == 1
    np.testing.assert_array_equal(found.read("layers.0.norm.weight"), 1)
    # They multiply in the type of the scales; ours is rounded once, to the same.
    values = found.read(name).astype(expected.dtype)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("case", [case for case in CONFIGS if "zero_point" not in case])
def test_what_is_rounded_is_stored_again_to_the_bit(case, tmp_path):
    """Whatever made the codes: the lowest of two's complement is among these."""
    found = reader(written(tmp_path, parts_of(case)), CONFIGS[case])
    (name,) = found.names()
    stored, weight = found.stored(name), found.rounded(name)
    assert stored is not None and weight is not None
    np.testing.assert_array_equal(weight.values, found.read(name))
    if stored.codec.global_scale:
        return  # such a format is not written
    again = stored.codec.exactly(weight)
    assert again is not None
    for part, values in found.parts(name).items():
        as_float = values.dtype.kind in "fV" and part
        expected = values.astype(np.float32) if as_float else values
        np.testing.assert_array_equal(again[part].reshape(values.shape), expected)
    off = weight.scales * np.where(np.arange(weight.scales.size) == 1, 3, 1).reshape(
        weight.scales.shape
    )
    assert stored.codec.exactly(Rounded(weight.numbers, off)) is None
    assert stored.codec.exactly(Rounded(weight.numbers + 0.25, weight.scales)) is None


INT4 = CONFIGS["int4_groups_of_24"]
PACKED = parts_of("int4_groups_of_24")


def refusal(tmp_path, tensors, config=INT4) -> str:
    with pytest.raises(UserError) as error:
        reader(written(tmp_path, tensors), config)
    return str(error.value)


def without(part: str) -> dict[str, np.ndarray]:
    return {name: x for name, x in PACKED.items() if not name.endswith(part)}


@pytest.mark.parametrize("part", ["_packed", "_scale", "_shape"])
def test_a_weight_of_which_a_tensor_is_missing_is_refused_or_is_no_weight(
    part, tmp_path
):
    tensors = without(part) | {"layers.0.norm.weight": np.ones(3, np.float32)}
    if part == "_shape":
        problem = f"{WEIGHT} is stored in few bits, but {WEIGHT}_shape is missing"
        assert refusal(tmp_path, tensors).startswith(problem)
    else:  # what is left has no place in a model, and is reported so
        left = reader(written(tmp_path, tensors), INT4).names()
        assert set(left) == tensors.keys()


@pytest.mark.parametrize(
    ("part", "values", "problem"),
    [
        ("_scale", np.ones((30, 2), np.float32), r"has _scale [30, 2] (must be"),
        ("_shape", np.array([30, 80]), "has _packed [30, 9] (must be [30, 10])"),
        ("_shape", np.array([30, -72]), "has the shape [30, -72], which is no matrix"),
        ("_packed", np.ones((30, 9), np.uint8), "has codes of type U8 (must be I32)"),
        ("_scale", np.ones((30, 3), np.int8), "has scales of type I8, which is not"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(part, values, problem, tmp_path):
    assert problem in refusal(tmp_path, PACKED | {WEIGHT + part: values})


def changed(**changes) -> dict[str, Any]:
    return INT4 | changes


def group(**changes) -> dict[str, Any]:
    (found,) = INT4["config_groups"].values()
    weights = found["weights"] | changes
    return changed(
        config_groups={"group_0": found | {"format": None, "weights": weights}}
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"quant_method": "gptq"}, 'quant_method ("gptq") must be one of compressed'),
        ({}, "quant_method is missing"),
        (changed(config_groups={"W4A16": ["Linear"]}), "config_groups.W4A16 (a"),
        (
            changed(sparsity_config={"format": "marlin"}),
            "sparsity_config must be empty",
        ),
        (changed(transform_config={"R1": {}}), "transform_config must be empty"),
        (changed(ignore=["re:.*x"]), "ignore names layers.0.x, whose weights"),
        (changed(ignore=["re:(x"]), "must be a regular expression after re:, but"),
        (group(num_bits=9), "weights.num_bits (9) must be a whole number from 1 to 8"),
        (group(type="float"), "format (pack-quantized, float of 4 bits) must be"),
        (group(group_size=None), "group_size (null) must be positive for groups"),
        (group(actorder="group"), 'actorder ("group") must be another'),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(config, problem, tmp_path):
    found = refusal(tmp_path, PACKED, config)
    assert found.startswith("config.json: ") and problem in found


def test_of_several_groups_a_name_comes_before_a_class(tmp_path):
    (found,) = INT4["config_groups"].values()
    other = CONFIGS["int8_channel"]["config_groups"]["group_0"]
    tensors = PACKED | parts_of("int8_channel", "layers.1.")
    groups = {"all": found, "one": other | {"targets": ["re:.*layers\\.1\\.x$"]}}
    file = written(tmp_path, tensors)
    names = {"format": "mixed-precision", "ignore": ["lm_head", "re:.*gate$"]}
    mixed = reader(file, INT4 | names | {"config_groups": groups})
    for name, case in (
        (WEIGHT, "int4_groups_of_24"),
        ("layers.1.x.weight", "int8_channel"),
    ):
        expected = GOLDEN.read(f"{case}/expected")
        values = mixed.read(name).astype(expected.dtype)
        np.testing.assert_array_equal(values, expected)
    nobody = groups | {"all": found | {"targets": ["layers.7.x"]}}
    with pytest.raises(
        UserError, match=r"config_groups has no target for layers\.0\.x"
    ):
        reader(file, INT4 | names | {"config_groups": nobody})
