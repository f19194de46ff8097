"""`python -m maxfdl.bench`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from maxfdl import bench as command
from maxfdl.bench import lines
from maxfdl.errors import UserError
from maxfdl.run.accelerator import suite
from maxfdl.run.accelerator.check import Outcome
from maxfdl.run.benchmark import Figures, Spread
from tests.commands import ON_ONE_DEVICE

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parents[1]
RUN = {
    "name": "small",
    "device_kind": "NVIDIA H100",
    "platform": "gpu",
    "num_devices": 8,
    "batch_size": 16,
    "sequence_length": 2048,
    "steps": 10,
    "warmup": 2,
    "load_average_before": (0.9, 0.5, 0.5),
    "load_average_after": (2.25, 0.5, 0.5),
    "num_cpus": 2,
}
FIGURES = Figures(
    first_step_seconds=9.87,
    trace_seconds=0.5,
    compile_seconds=3.21,
    step_seconds=Spread(median=0.125, p10=0.12, p90=0.13),
    cpu_seconds_per_step=0.01234,
    tokens_per_second=262_144.0,
    model_tflops_per_second=3956.0,
    mfu=0.5,
    peak_bytes=3 * 2**30,
    peak_bytes_from="device",
    dispatch_microseconds=98.6,
)


def bench(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "maxfdl.bench", *args],
        cwd=ROOT,
        env=os.environ | ON_ONE_DEVICE,
        capture_output=True,
        text=True,
    )


def test_the_lines_read():
    assert lines(RUN, FIGURES) == [
        "small on 8 devices (NVIDIA H100), batch 16 x 2048 = 32,768 tokens",
        "first step: 9.87 s after the process started",
        "compile: 3.21 s, after 0.50 s of tracing",
        "step: 0.125 s (p10 0.12, p90 0.13; 10 steps)",
        "CPU time: 0.01234 s a step",
        "speed: 262k tokens/s, 3956 model TFLOP/s, MFU 50.0%",
        "peak memory: 3.0 GiB a device (counted by the device)",
        "dispatch: 99 microseconds a step",
        "load average: 0.90 before, 2.25 after, on 2 CPUs",
    ]


def test_a_busy_machine_is_warned_of():
    busy = {**RUN, "load_average_before": (1.1, 0.5, 0.5)}
    assert lines(busy, FIGURES)[-1] == (
        "warning: the machine was busy before this began; these times are not those of"
        " a quiet one"
    )


def test_it_prints_and_writes_what_it_measured(tmp_path):
    file = tmp_path / "figures.json"
    done = bench(
        "experiments.llama2_smoke", "--steps=2", "--warmup=0", f"--json={file}"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert set(figures) == set(RUN) | set(vars(FIGURES))
    assert set(figures["step_seconds"]) == {"median", "p10", "p90"}
    assert (figures["steps"], figures["mfu"]) == (2, None)
    assert figures["peak_bytes_from"] == "compiler"
    assert figures["first_step_seconds"] > figures["compile_seconds"] > 0
    assert done.stdout.startswith(
        "llama2_smoke on 1 device (cpu), batch 8 x 64 = 512 tokens\nfirst step: "
    )
    assert "MFU not known for this chip" in done.stdout


@pytest.mark.parametrize(
    "args, message",
    [
        (["--steps=0"], "flag --steps=0: 0 is not a positive integer"),
        (["mesh(fsdp=3)"], "mesh {'data': 1, 'fsdp': 3, 'tensor': 1} does not fit"),
    ],
)
def test_mistakes_are_one_line_and_code_2(args, message):
    done = bench("experiments.llama2_smoke", *args)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_accelerator_is_checked_in_processes_of_their_own(tmp_path):
    file = tmp_path / "found.json"
    done = bench("--accelerator", "--accelerator_only=product", f"--json={file}")
    assert (done.returncode, done.stderr) == (0, "")
    device, product, summary = done.stdout.splitlines()
    assert device.startswith("measured  device ") and "cpu, JAX " in device
    assert product.startswith("measured  product ") and "512^3 in bfloat16" in product
    assert summary.startswith("2 checks in ")
    found = json.loads(file.read_text())
    assert [check["name"] for check in found["checks"]] == ["device", "product"]


def main_with(*args: str) -> None:
    """Runs the command in this process, whose own flags nobody has parsed."""
    with flagsaver.flagsaver():
        try:
            FLAGS(["bench", *args])
            command.main([])
        finally:
            FLAGS.unparse_flags()


def test_a_failed_check_gives_code_1(monkeypatch, capsys):
    found = [Outcome("passed", "", name="a"), Outcome("failed", "so", name="b")]
    monkeypatch.setattr(suite, "run", lambda *args, **kwargs: iter(found))
    with pytest.raises(SystemExit) as end:
        main_with("--accelerator")
    assert end.value.code == 1
    assert capsys.readouterr().out.endswith("0 skipped, 1 failed (b)\n")


def test_a_kernel_that_is_refused_is_no_failure(monkeypatch):
    found = [Outcome("refused", "so", name="b")]
    monkeypatch.setattr(suite, "run", lambda *args, **kwargs: iter(found))
    main_with("--accelerator")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--accelerator", "--fdl_config=experiments.llama2_smoke"],
            "--fdl_config has no meaning with --accelerator, whose experiments are its",
        ),
        (["--accelerator", "--steps=3"], "--steps has no meaning with --accelerator"),
        (
            ["--accelerator_minutes=3"],
            "--accelerator_minutes has no meaning without --accelerator",
        ),
        (
            ["--accelerator", "--accelerator_only=speed"],
            "--accelerator_only=speed is no section. It must be one of attention,",
        ),
        (["--accelerator", "--json=no/such/folder"], "cannot be written"),
    ],
)
def test_flags_that_mean_nothing_are_refused_at_once(args, message):
    with pytest.raises(UserError, match=message):
        main_with(*args)
