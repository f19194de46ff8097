"""`python -m maxfdl.show`."""

import json
import time

import pytest

import maxfdl.show
from tests import golden
from tests.commands import Caller

SEVEN_B = "experiments.llama2_nnx(size=7b)"


@pytest.fixture
def show(monkeypatch, capsys):
    """Calls the command; returns code, output, errors."""
    call = Caller(monkeypatch, capsys)
    return lambda *args: call(maxfdl.show.main, *args)


def test_the_text_is_the_golden_one(show):
    code, out, error = show("experiments.llama2_smoke", "mesh(fsdp=4,tensor=2)")
    assert (code, error) == (0, "")
    golden.check("llama2_smoke.show", out)


def test_seven_billion_on_256_devices_takes_less_than_ten_seconds(show, tmp_path):
    file = tmp_path / "facts.json"
    # The processor's seconds: the clock's would count what else the machine does.
    before = time.process_time()
    code, out, error = show(SEVEN_B, "to_linen", "mesh(fsdp=256)", f"--json={file}")
    assert time.process_time() - before < 10
    assert (code, error) == (0, "")
    facts = json.loads(file.read_text())
    assert facts["num_parameters"] == 6_738_415_616
    assert "parameters: 6,738,415,616 (" in out
    assert "fsdp 256 x tensor 1 = 256 devices (8 cpu here)" in out
    assert "attention: xla (cpu)" in out


def test_json_holds_what_the_text_says(show, tmp_path):
    file = tmp_path / "facts.json"
    show("experiments.llama2_smoke", "mesh(fsdp=4,tensor=2)", f"--json={file}")
    facts = json.loads(file.read_text())
    assert set(facts) == {
        "name",
        "platform",
        "devices_here",
        "attention",
        "pipelines",
        "products",
        "num_parameters",
        "num_frozen_parameters",
        "num_parameters_by_role",
        "num_devices",
        "tokens_per_step",
        "flops_per_token",
        "flops_per_step",
        "parameters",
        "mesh",
        "batch_size",
        "sequence_length",
        "batch_sharding",
        "state_bytes_per_device",
        "state_bytes_on_host",
        "modules",
    }
    assert facts["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
    assert facts["attention"] == ["xla"]
    assert list(facts["products"]) == ["float32"]
    assert facts["parameters"][0] == {
        "path": "decoder/stacks_0/layers_0/attention/key/kernel",
        "role": "kernel",
        "shape": [2, 32, 2, 8],
        "dtype": "float32",
        "axes": ["layers", "embed", "kv_heads", "head_dim"],
        "sharding": [None, "fsdp", "tensor", None],
        "bytes_per_device": 2 * 8 * 1 * 8 * 4,
        "trained": True,
        "size": 2 * 32 * 2 * 8,
    }
    state = facts["state_bytes_per_device"]
    assert state["params"] == sum(p["bytes_per_device"] for p in facts["parameters"])
    assert state.pop("total") == sum(state.values())


def test_memory_is_told_by_what_it_is_for(show, tmp_path):
    file = tmp_path / "memory.json"
    words = ("experiments.llama2_smoke", "mesh(fsdp=4)", "remat(policy=full)")
    code, out, error = show(*words, "--memory", "--devices=4", f"--json={file}")
    assert (code, error) == (0, "")
    found = json.loads(file.read_text())
    assert found["devices"] == 4 and found["mesh"]["fsdp"] == 4
    assert found["peak_bytes"] == found["argument_bytes"] + found["temp_bytes"]
    assert found["fits"] is True and found["memory_bytes"] > found["peak_bytes"]
    rows = {line.strip().split("  ")[0] for line in out.splitlines()}
    told = {"arguments", "params, float32", "saved for the backward pass", "peak"}
    assert rows >= told and "memory of each of 4 devices (cpu)" in out


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["experiments.llama2_smoke", "--topology=v5e:2x2"],
            "--topology has no meaning without --memory; add that.",
        ),
        (
            ["experiments.llama2_smoke", "--memory", "--sharding"],
            "--sharding and --memory exclude each other; leave one out.",
        ),
        (
            [SEVEN_B, "--memory", "--topology=h100:8"],
            "--topology=h100:8 cannot be compiled for: JAX compiles ahead of time for"
            " slices of TPUs only; on a machine with such cards, leave --topology out"
            " to compile for those that are here.",
        ),
        (
            [SEVEN_B, "mesh(tensor=3)"],
            "decoder/stacks_0/layers_0/attention/key/kernel: dim 'kv_heads' of size 32"
            " cannot be cut into 3 by mesh axis tensor; 1 or 2 would fit: change the"
            " mesh, the size, or sharding.kv_heads.",
        ),
        (
            ["experiments.llama2_smoke", "--json=no/such/folder/facts.json"],
            "--json=no/such/folder/facts.json cannot be written (No such file or"
            " directory); give a file in a directory that exists.",
        ),
    ],
)
def test_mistakes_are_one_line_and_code_2(show, args, message):
    code, _, error = show(*args)
    assert (code, error) == (2, f"error: {message}\n")


@pytest.mark.slow
def test_the_published_models_take_less_than_a_minute(show, tmp_path):
    file = tmp_path / "models.json"
    before = time.process_time()
    code, out, error = show("--models", f"--json={file}")
    assert time.process_time() - before < 60
    assert (code, error) == (0, "")
    rows = json.loads(file.read_text())["models"]
    assert len(rows) == len(out.splitlines()) - 2 > 50
    assert "llama2_7b" in out and "6,738,415,616" in out


def test_show_and_bench_share_their_flags_in_one_process():
    import maxfdl.bench

    assert maxfdl.show.json_file is maxfdl.bench.json_file
