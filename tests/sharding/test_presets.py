"""Presets of the mesh, and where they put every array of published models."""

import fiddle as fdl
import pytest

import maxfdl.show
from fdl_configs import meshes
from maxfdl import graph
from maxfdl.graph import diff
from maxfdl.graph.expression import parse_call
from maxfdl.graph.resolve import mutate
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from tests import golden, tiny
from tests.commands import Caller

MODELS = {
    "llama3_8b": 8,
    "llama3_70b": 8,
    "mixtral_8x7b": 8,
    "deepseek_v3_671b": 8,
    "qwen3_next_80b_a3b": 2,
}
"""How many devices share the heads of keys."""
PRESETS = {
    "fsdp": "fsdp",
    "fsdp_tensor": "fsdp_tensor(tensor={tensor})",
    "expert": "expert(expert=8)",
    "context": "context(context=4)",
    "pipeline": "pipeline(stage=4)",
    "multislice": "multislice(slices=4)",
}
FAST = [("llama3_8b", "fsdp_tensor")]
CASES = [
    pytest.param(m, p, marks=[pytest.mark.slow] * ((m, p) not in FAST), id=f"{p}-{m}")
    for m in MODELS
    for p in PRESETS
]


@pytest.mark.parametrize("model, preset", CASES)
def test_every_array_lies_where_the_golden_text_says(
    model, preset, monkeypatch, capsys
):
    call = PRESETS[preset].format(tensor=MODELS[model])
    expression = f"experiments.pretrain(model={model})+fdl_configs.meshes.{call}"
    show = Caller(monkeypatch, capsys)
    code, out, error = show(maxfdl.show.main, expression, "--sharding", "--devices=256")
    assert (code, error) == (0, "")
    golden.check(f"sharding/{preset}/{model}.txt", out)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_the_mesh_and_the_rules_and_leaves_its_input_alone(preset):
    config = tiny.experiment()
    config.sharding.vocab, config.mesh.data = (), 2
    before = graph.copy(config)
    call = PRESETS[preset].format(tensor=2)
    once = mutate(config, parse_call(f"fdl_configs.meshes.{call}"))
    assert config == before
    made = graph.build(once)
    assert made.mesh.sizes(256)["fsdp"] > 1
    assert made.sharding.vocab == AxisRules().vocab
    assert isinstance(made.mesh, MeshShape)


def test_sequence_parallelism_is_one_rule():
    with_it = meshes.fsdp_tensor(tiny.experiment(), tensor=2)
    without = meshes.fsdp_tensor(tiny.experiment(), tensor=2, sequence_parallel=False)
    assert diff(without, with_it) == ["+ sharding.residual = ('context', 'tensor')"]
    assert fdl.get_callable(with_it.sharding) is AxisRules
