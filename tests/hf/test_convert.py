"""`python -m maxfdl.convert` and `init_from`: weights into runs and back."""

import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maxfdl import graph, hf
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.mutations import (
    freeze,
    offload_optimizer,
    offload_parameters,
    use_schedule_free,
)
from maxfdl.run.first_state import first_state
from maxfdl.saved_run import read_run
from tests import goldens, tiny
from tests.commands import ON_ONE_DEVICE
from tests.hf.variants import loaded

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = goldens.FOLDER / "llama3"
EXPERIMENT = f'--fdl_config=experiments.fine_tune(hf="{FOLDER}")'


def run(*args: str, code: int = 0) -> str:
    """Runs `python -m maxfdl.<args>` on one CPU device."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env=os.environ | ON_ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    assert code or not done.stderr
    return done.stdout if code == 0 else done.stderr


def losses(directory: pathlib.Path) -> list[float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> pathlib.Path:
    """A run directory made of the golden folder, before any step."""
    directory = tmp_path_factory.mktemp("converted")
    out = run("maxfdl.convert", f"--from_hf={FOLDER}", f"--to={directory}",
              "--fdl_set=steps=3", "--fdl_set=trainer.log_every=1")  # fmt: skip
    assert out == f"{directory} holds the weights of {FOLDER} at step 0\n"
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A run that started from the golden folder by itself."""
    directory = tmp_path_factory.mktemp("trained")
    run("maxfdl.launch", EXPERIMENT, f"--run_dir={directory}", "steps=3",
        "trainer.log_every=1")  # fmt: skip
    return directory


def test_a_converted_run_has_the_weights_at_step_0(converted):
    config = graph.load_json((converted / "config.json").read_text())
    assert config.init_from == str(FOLDER) and config.steps == 3
    model = graph.build(config).make_model()
    abstract = jax.eval_shape(model.init, jax.random.key(0))["params"]
    checkpointer = Checkpointer(directory=converted / "checkpoints")
    assert checkpointer.latest() == 0
    params = checkpointer.read(0, {"params": abstract})["params"]
    expected = loaded("llama3").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_back_again_the_files_are_equal_to_the_bit(converted, tmp_path):
    run("maxfdl.convert", f"--from_run={converted}", f"--to_hf={tmp_path}")
    saved, source = load_file(tmp_path / "model.safetensors"), goldens.weights("llama3")
    assert saved.keys() == source.keys()
    assert all(saved[name].tobytes() == x.tobytes() for name, x in source.items())
    assert all(saved[name].shape == x.shape for name, x in source.items())
    written, expected = (
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path, FOLDER)
    )
    assert written == expected


def test_a_run_whose_weights_are_not_finite_is_read_only_if_that_is_allowed(
    converted, tmp_path
):
    run = read_run(converted)
    variables = jax.tree.map(np.array, run.variables)
    variables["params"]["final_norm"]["scale"][0] = np.nan
    graph_json = (converted / "config.json").read_text()
    (tmp_path / "config.json").write_text(graph_json)
    saved = Checkpointer(directory=tmp_path / "checkpoints")
    saved.save(
        3,
        variables,
        types.SimpleNamespace(get_state=dict),
        graph_json,
        allow_non_finite=True,
    )
    saved.close()
    problem = r"final_norm.scale holds values that are not finite; .*--allow_non_finite"
    with pytest.raises(UserError, match=problem):
        read_run(tmp_path)
    assert read_run(tmp_path, allow_non_finite=True).step == 3


def test_weights_that_are_not_finite_are_converted_only_if_that_is_allowed(tmp_path):
    folder, bad = tmp_path / "folder", "model.norm.weight"
    folder.mkdir()
    (folder / "config.json").write_text((FOLDER / "config.json").read_text())
    weights = goldens.weights("llama3")
    weights[bad] = np.full_like(weights[bad], np.nan)
    save_file(weights, folder / "model.safetensors")
    way = (f"--from_hf={folder}", f"--to={tmp_path / 'run'}")
    errors = run("maxfdl.convert", *way, code=2)
    assert errors.startswith(f"error: {folder}/model.safetensors: {bad} holds nan")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_of_a_run_that_averages_its_weights_the_average_is_written(tmp_path):
    directory, folder = tmp_path / "run", tmp_path / "folder"
    run("maxfdl.launch", EXPERIMENT, f"--run_dir={directory}", "average_weights",
        "steps=3")  # fmt: skip
    run("maxfdl.convert", f"--from_run={directory}", f"--to_hf={folder}")
    written = first_state(tiny.program(loaded("llama3").config), str(folder))["params"]
    config = graph.load_json((directory / "config.json").read_text())
    abstract = tiny.program(config).abstract_state()
    parts = {name: abstract[name] for name in ("params", "updates")}
    saved = Checkpointer(directory=directory / "checkpoints").read(3, parts)
    average = saved["updates"]["weight_average"]["average"]
    jax.tree.map(np.testing.assert_array_equal, written, average)
    moved = jax.tree.map(lambda a, b: np.any(a != b), written, saved["params"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_launcher_goes_on_from_there_as_from_the_folder(converted, trained):
    run("maxfdl.launch", f"--fdl_config_file={converted / 'config.json'}",
        f"--run_dir={converted}")  # fmt: skip
    assert len(losses(converted)) == 3
    assert losses(converted) == losses(trained)


@pytest.mark.slow
def test_a_directory_that_holds_a_run_is_refused(trained):
    errors = run("maxfdl.convert", f"--from_hf={FOLDER}", f"--to={trained}", code=2)
    assert errors == f"error: {trained} holds a run; give another --to.\n"


def test_half_a_command_says_what_it_takes():
    errors = run("maxfdl.convert", f"--from_hf={FOLDER}", code=2)
    assert errors.startswith("error: give --from_hf=FOLDER and --to=RUN_DIR, or ")


def test_a_folder_that_does_not_fit_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text((FOLDER / "config.json").read_text())
    errors = run("maxfdl.convert", f"--from_hf={tmp_path}", f"--to={tmp_path}/run",
                 code=2)  # fmt: skip
    assert errors == f"error: {tmp_path} holds no *.safetensors file; fetch it again.\n"


@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_begins_with_the_weights_of_a_folder(devices, offload):
    config = loaded("llama3").config
    if offload:
        config = offload_optimizer(offload_parameters(config))
    program = tiny.program(config, devices)
    state = first_state(program, str(FOLDER))
    expected = loaded("llama3").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, state["params"], expected)
    wanted = program.abstract_state()
    jax.tree.map(lambda x, a: (x.shape, x.dtype) == (a.shape, a.dtype) or 1 / 0, state,
                 wanted)  # fmt: skip
    jax.tree.map(lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim) or 1 / 0,
                 state, wanted)  # fmt: skip
    assert int(state["step"]) == 0


def test_frozen_weights_of_a_folder_come_and_go_in_their_own_type(tmp_path):
    paths = ("embedding", "**.attention")
    config = freeze(loaded("llama3").config, paths=paths, dtype="bfloat16")
    state = first_state(tiny.program(config), str(FOLDER))
    types = jax.tree.map(lambda leaf: leaf.dtype.name, state["params"])
    assert types["embedding"]["table"] == "bfloat16"
    assert types["final_norm"]["scale"] == "float32"
    hf.save(tmp_path, config, {"params": state["params"], "state": state["state"]})
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    written, source = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, FOLDER)
    )
    assert written.keys() == source.keys()
    for name, values in written.items():
        np.testing.assert_array_equal(values, source[name].astype(values.dtype))


@pytest.mark.parametrize("offload", [False, True], ids=["device", "host"])
def test_a_run_begins_with_the_weights_of_a_run(trained, offload):
    config = loaded("llama3").config
    if offload:
        config = use_schedule_free(offload_optimizer(offload_parameters(config)))
    program = tiny.program(config)
    state = first_state(program, str(trained))
    checkpointer = Checkpointer(directory=trained / "checkpoints")
    abstract = {"params": program.abstract_state()["params"]}
    newest = checkpointer.read(3, abstract)
    jax.tree.map(np.testing.assert_array_equal, state["params"], newest["params"])
    fresh = program.start_from({"params": newest["params"], "state": {}})
    jax.tree.map(np.testing.assert_array_equal, state["optimizer"], fresh["optimizer"])
    assert int(state["step"]) == 0


def test_weights_of_another_network_are_refused():
    other = goldens.FOLDER / "llama2"
    with pytest.raises(UserError, match="does not hold the tensors of its config"):
        first_state(tiny.program(loaded("llama3").config), str(other))


def test_a_missing_folder_is_refused():
    program = tiny.program(loaded("llama3").config)
    with pytest.raises(UserError, match="init_from .nowhere. must be a model folder"):
        first_state(program, "nowhere")
