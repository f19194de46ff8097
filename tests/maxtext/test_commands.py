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
from safetensors.numpy import load_file

from maxfdl import convert, graph, maxtext
from maxfdl.errors import UserError
from maxfdl.run.first_state import first_state
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from tests import tiny
from tests.commands import ON_ONE_DEVICE, Caller, complaint
from tests.maxtext.comparing import differences
from tests.maxtext.goldens import Golden

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = Golden("llama2_nnx025_scan")


def run(*args: str) -> str:
    """Runs `python -m maxfdl.<args>` on one CPU device."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env=os.environ | ON_ONE_DEVICE,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def call(monkeypatch, capsys):
    return Caller(monkeypatch, capsys)


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


@pytest.mark.slow
def test_a_state_goes_through_every_format_and_back_by_commands(tmp_path, call):
    def to(name: str, source: pathlib.Path, *flags: str) -> pathlib.Path:
        args = f"--from={source}", f"--to={tmp_path / name}", *flags
        code, _, error = call(convert.main, *args)
        assert code == 0, error
        return tmp_path / name

    linen = to("linen", GOLDEN.path, "--format=maxtext_linen")
    unrolled = to("nnx", linen, "--format=maxtext_nnx", "--noscanned")
    directory = to("run", unrolled, "--fdl_set=batch_size=8")
    back = to("back", directory, "--format=maxtext_nnx")
    items = MaxTextFolder(back).items, MaxTextFolder(GOLDEN.path).items
    assert not [line for line in differences(*items) if "rngs" not in line]
    folders = to("hf", back, "--format=hugging_face"), tmp_path / "expected"
    to("expected", GOLDEN.path, "--format=hugging_face")
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_command_refuses_what_it_cannot_convert_in_a_sentence(tmp_path, call):
    def refused(*args: str) -> str:
        done = call(convert.main, *args, f"--to={tmp_path / 'to'}")
        assert not (tmp_path / "to").exists()
        return complaint(done)

    alone = f"--from={Golden('llama2_linen024_param_only').path}"
    assert "Did you mean 'maxtext_nnx'" in refused(alone, "--format=maxtext_nx")
    assert "must be a checkpoint of MaxText" in refused(f"--from={tmp_path}")
    shutil.copytree(GOLDEN.path / "checkpoint", tmp_path / "from" / "2")
    bare = f"--from={tmp_path / 'from'}"
    assert "config.json with MaxText's options" in refused(bare, "--format=maxtext_nnx")
    options = tmp_path / "options.yml"
    options.write_text("decoder_block: gemma5\n")
    given = f"--maxtext_config={options}"
    assert "Did you mean 'gemma" in refused(bare, given, "--format=hugging_face")
    options.write_text("decoder_block: llama2\nbase_emb_dim: 48\n")
    shapes = refused(bare, given, "--format=hugging_face")
    assert "token_embedder/embedding [128, 32] (must be [32000, 48])" in shapes


DAMAGES = {
    "manifest.ocdbt": b"",
    "_METADATA": b"{",
    "_METADATA ": b'{"tree_metadata": {"a": {"key_metadata": 3}}}',
    "ocdbt.process_0/d": None,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_half_a_checkpoint_is_refused_in_a_sentence(name, tmp_path):
    shutil.copytree(Golden("llama2_linen024_param_only").path, tmp_path / "x")
    place = tmp_path / "x" / "checkpoint" / "items" / name.strip()
    if (content := DAMAGES[name]) is None:
        shutil.rmtree(place)
    else:
        place.write_bytes(content)
    with pytest.raises(UserError, match="put back a copy|fetch it again"):
        maxtext.load(tmp_path / "x")


def test_weights_go_to_hugging_face_however_maxtext_trained_them(tmp_path, call):
    source = Golden("llama2_linen024_param_only")
    shutil.copytree(source.path, tmp_path / "from")
    config = source.config
    config["resolved"] |= {"opt_type": "adafactor", "skip_step_on_spikes": True}
    (tmp_path / "from" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="skip_step_on_spikes"):
        maxtext.load(tmp_path / "from")
    args = f"--from={tmp_path / 'from'}", f"--to={tmp_path / 'to'}"
    assert call(convert.main, *args, "--format=hugging_face")[0] == 0
    assert (tmp_path / "to" / "model.safetensors").exists()


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
