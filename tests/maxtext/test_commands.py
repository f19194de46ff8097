"""`convert` and `launch` with checkpoints of MaxText."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from maxfdl import graph, maxtext
from maxfdl.errors import UserError
from maxfdl.run.first_state import first_state
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from tests import tiny
from tests.maxtext.goldens import Golden

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = Golden("llama2_nnx025_scan")


def run(*args: str) -> str:
    """Runs `python -m maxfdl.<args>` on one CPU device."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def steps(directory: pathlib.Path) -> list[int]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry["step"] for entry in entries if "loss" in entry]


@pytest.mark.slow
def test_a_run_goes_on_from_maxtext_and_back(tmp_path):
    directory, back = tmp_path / "run", tmp_path / "back"
    out = run(
        "maxfdl.convert", f"--from={GOLDEN.path}", f"--to={directory}",
        "--fdl_set=trainer.log_every=1",
    )  # fmt: skip
    assert out.endswith("at step 3\n")
    run(
        "maxfdl.launch", f"--fdl_config_file={directory}/config.json",
        f"--run_dir={directory}", "--stop_at=5",
    )  # fmt: skip
    assert steps(directory) == [4, 5]
    out = run(
        "maxfdl.convert", f"--from={directory}", f"--to={back}", "--format=maxtext_nnx"
    )
    assert out == f"{back} holds the training state of {directory} at step 5\n"
    loaded = maxtext.load(back)
    assert loaded.state is not None and int(loaded.state["step"]) == 5


@pytest.mark.slow
def test_a_launch_resumes_at_the_step_of_maxtext(tmp_path):
    config = f'fdl_configs.maxtext.fine_tuning(folder="{GOLDEN.path}")'
    run(
        "maxfdl.launch", f"--fdl_config={config}", f"--run_dir={tmp_path}",
        f"resume_from={GOLDEN.path}", "trainer.log_every=1", "--stop_at=4",
    )  # fmt: skip
    assert steps(tmp_path) == [4]


def test_init_from_puts_what_maxtext_keeps_in_weights_back(tmp_path):
    loaded = maxtext.load(Golden("llama2_linen024_param_only").path)
    network = graph.copy(loaded.config.model)
    for stack in network.decoder.stacks:
        del stack.layers[0].attention.attention.scale
    config = graph.copy(loaded.config)
    config.model, config.batch_size = network, 1
    state = first_state(tiny.program(config), str(loaded.config.init_from))
    paths = "decoder", "stacks_0", "layers_0", "attention", "query", "kernel"
    ours, theirs = state["params"], loaded.variables["params"]
    for name in paths:
        ours, theirs = ours[name], theirs[name]
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), np.asarray(theirs, np.float32) * 8**0.5, rtol=4e-3
    )


def test_a_checkpoint_is_found_however_its_folder_is_given(tmp_path):
    step = tmp_path / "checkpoints" / "2"
    shutil.copytree(GOLDEN.path / "checkpoint", step)
    shutil.copy(GOLDEN.path / "config.json", tmp_path)
    (tmp_path / "checkpoints" / "10").mkdir()  # a step that was never finished
    for folder in (tmp_path, tmp_path / "checkpoints", step, step / "items"):
        assert MaxTextFolder(folder).items.path == step / "items"
        assert MaxTextFolder(folder).options["decoder_block"] == "llama2"


def test_options_may_be_given_apart(tmp_path):
    shutil.copytree(GOLDEN.path / "checkpoint", tmp_path / "2")
    with pytest.raises(UserError, match="has no config.json with MaxText's options"):
        maxtext.load(tmp_path)
    options = GOLDEN.config["resolved"]
    loaded = maxtext.load(tmp_path, options=options)
    same = maxtext.load(GOLDEN.path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, same.variables)


def test_an_optimizer_of_other_moments_is_refused_in_a_sentence():
    loaded = maxtext.load(Golden("llama2_linen024_param_only").path)
    config = graph.copy(loaded.config)
    config.batch_size = 1
    muon = str(Golden("llama2_nnx025_muon").path)
    with pytest.raises(UserError, match="holds the state of MaxText's muon"):
        first_state(tiny.program(config), None, muon)
    alone = str(Golden("llama2_linen024_param_only").path)
    with pytest.raises(UserError, match="holds parameters alone"):
        first_state(tiny.program(config), None, alone)
