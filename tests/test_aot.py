"""`python -m maxfdl.aot`, on the eight virtual devices here and for slices of TPUs."""

import dataclasses
import json
import signal
import threading

import jax
import pytest

import maxfdl.aot
import maxfdl.launch
from maxfdl import graph
from maxfdl.report import search
from maxfdl.report.ahead import Ahead, program_of
from maxfdl.report.roofline import Roofline
from maxfdl.run.executable import Executable
from maxfdl.train.program import Program
from tests.commands import Caller, complaint

SMALL = "experiments.zoo_smoke", "model.decoder.stacks[0].repeats=1"
PROMISED = {
    "devices",
    "compile_seconds",
    "argument_bytes",
    "temp_bytes",
    "peak_bytes",
    "fits",
    "flops",
    "collectives",
    "wire_bytes",
    "roofline_seconds",
    "bound_by",
}


@pytest.fixture
def call(monkeypatch, capsys):
    return Caller(monkeypatch, capsys)


def figures(file):
    """Returns what is in a file of JSON, which holds no NaN."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(file.read_text(), parse_constant=refuse)


def test_two_steps_stand_side_by_side(call, tmp_path):
    file, step = tmp_path / "aot.json", tmp_path / "x.step"
    code, out, error = call(
        maxfdl.aot.main,
        *(*SMALL, "mesh(fsdp=8)", f"--json={file}", f"--executable={step}"),
        "--compare=experiments.zoo_smoke+mesh(data=2,fsdp=4)",
    )
    assert (code, error) == (0, "")
    found = figures(file)
    other = found.pop("compare")
    for each, mesh in ((found, {"fsdp": 8}), (other, {"data": 2, "fsdp": 4})):
        assert each.keys() >= PROMISED and each["devices"] == 8 and each["fits"]
        assert each["peak_bytes"] == each["argument_bytes"] + each["temp_bytes"]
        assert each["mesh"] == {"data": 1, "fsdp": 1, "tensor": 1} | mesh
        assert each["wire_bytes"] == sum(c["wire_bytes"] for c in each["collectives"])
        assert each["roofline_seconds"] is None  # a CPU has no data sheet here
        assert {axis for c in each["collectives"] for axis in c["axes"]} == {*mesh}
    # The value holds for both.
    assert found["model_flops"] == other["model_flops"]
    assert found["model_flops"] < found["flops"] < 1.5 * found["model_flops"]
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "fsdp 8" in rows["mesh"] and "data 2 x fsdp 4" in rows["mesh"]
    assert "x 0." in rows["sent"] or "x 1." in rows["sent"]
    assert Executable.read(step).made_for["mesh"] == found["mesh"]

    run = f"--run_dir={tmp_path / 'run'}"
    done = call(maxfdl.launch.main, *SMALL, run, f"--compiled={step}")
    assert "x.step is the step of another graph" in complaint(done)
    assert "  ~ mesh.fsdp: -1 -> 8" not in done[2] and "mesh.fsdp" in done[2]


def test_a_step_that_has_no_room_is_a_result(call, tmp_path, monkeypatch):
    def refuse(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of"
            " 15.75G hbm. Exceeded hbm capacity by 4.75G.\n\nTotal hbm usage >= 20.5G"
        )

    monkeypatch.setattr(Program, "compile_step", refuse)
    file = tmp_path / "aot.json"
    code, out, error = call(maxfdl.aot.main, *SMALL, "mesh(fsdp=8)", f"--json={file}")
    assert (code, error) == (1, "")
    assert "fits: no: Ran out of memory in memory space hbm. Used 20.5G of" in out
    assert "Total hbm usage" not in out
    found = figures(file)
    assert found.keys() >= PROMISED and found["fits"] is False
    assert found["peak_bytes"] == 20.5 * 2**30 and found["flops"] is None
    # How much of it are state and batch is known without the compiler.
    assert 0 < found["argument_bytes"] < 2**20 and "arguments: " in out


def test_a_bug_is_not_taken_for_a_lack_of_room(call, monkeypatch):
    monkeypatch.setattr(Program, "compile_step", lambda self: 1 / 0)
    code, _, error = call(maxfdl.aot.main, *SMALL, "mesh(fsdp=8)")
    assert code == 2 and "ZeroDivisionError" in error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_slices=2"], "--num_slices has no meaning without --topology"),
        (["--budget=2"], "--budget has no meaning without --search"),
        (["--search", "--compare=x"], "--compare has no meaning with --search"),
        (["--search", "--executable=x"], "--executable has no meaning with --search"),
        (["--topology=v5p-128"], "must be a TPU generation"),
        (["mesh(fsdp=3)"], "mesh {'data': 1, 'fsdp': 3, 'tensor': 1} does not fit 8"),
        (["mesh(fsdp=8)", "batch_size=4"], "size 4 cannot be cut into 8"),
        (["mesh(fsdp=8)", "--compare=experiments.x"], "experiments has no 'x'"),
        (["mesh(fsdp=8)", "--compare=experiments.zoo_smoke+mesh(fsdp=3)"], "fit 8"),
        (["mesh(fsdp=8)", "--json=/"], "--json=/ cannot be written"),
        (["mesh(fsdp=8)", "--executable=/no/x"], "--executable=/no/x cannot be"),
    ],
)
def test_what_is_wrong_is_told_before_anything_compiles(
    call, flags, words, monkeypatch
):
    monkeypatch.setattr(Program, "compile_step", lambda self: 1 / 0)
    assert words in complaint(call(maxfdl.aot.main, *SMALL, *flags))


# Wide enough for the kernels of a TPU, and for whole rows of its products.
ON_TPU = (
    "experiments.llama2_nnx",
    "model.features=512",
    "model.dtype=bfloat16",
    "sequence_length=512",
    "model.decoder.stacks[0].layers[0].attention.head_dim=128",
)


@pytest.mark.slow
def test_a_step_for_sixteen_chips_that_are_not_here(call, tmp_path):
    pytest.importorskip("libtpu")
    file = tmp_path / "aot.json"
    code, out, error = call(
        maxfdl.aot.main,
        *(*ON_TPU, "mesh(fsdp=16)", "batch_size=16"),
        *("--topology=v5e:4x4", f"--json={file}"),
    )
    assert (code, error) == (0, "")
    found = figures(file)
    assert found["devices"] == 16 and found["fits"]
    # Attention runs in a kernel, whose cost is known.
    assert found["unknown_kernels"] == []
    for formula in ("model_flops", "written_flops"):  # nothing is computed again
        assert found["flops"] == pytest.approx(found[formula], rel=0.01)
    assert found["bound_by"] == "ici"
    assert found["roofline_seconds"] == found["roofline"]["ici"] > 0
    assert {c["axes"][0] for c in found["collectives"]} == {"fsdp"}
    assert "bound by: the interconnect" in out


@pytest.mark.slow
def test_slices_are_told_apart_and_what_crosses_them(call, tmp_path):
    pytest.importorskip("libtpu")
    file = tmp_path / "aot.json"
    code, out, error = call(
        maxfdl.aot.main,
        *(*ON_TPU, "mesh(data=2,fsdp=4)", "batch_size=16"),
        *("--topology=v5e:2x2", "--num_slices=2", f"--json={file}"),
    )
    assert (code, error) == (0, "")
    found = figures(file)
    crossing = [c for c in found["collectives"] if c["network"] == "dcn"]
    assert {(c["kind"], *c["axes"]) for c in crossing} == {("all-reduce", "data")}
    assert found["num_slices"] == 2 and "8 devices (TPU v5 lite) in 2 slices" in out
    assert found["roofline"]["dcn"] > 0


def made_up(seconds):
    """Returns the report of a step that takes so long at least."""
    report = Ahead("x", "?", {"fsdp": 8}, 1, 0.0, 0.0, 1.0, 1.0, flops=1.0)
    times = Roofline(seconds, 0.0, 0.0, 0.0)
    return dataclasses.replace(report, roofline=times, mfu=0.5, peak_bytes=1)


def test_a_search_prints_the_best_as_a_command(call, tmp_path, monkeypatch):
    file = tmp_path / "aot.json"

    def trials(make, devices, budget):
        for mutations in ((), ("mesh(fsdp=4,tensor=2)",)):
            program_of(graph.build(make(mutations)), devices)
            yield search.Trial(mutations, made_up(2.0 - len(mutations)))
        yield search.Trial(("mesh(tensor=8)",), refusal="heads: 4 cannot be cut.")

    monkeypatch.setattr(search, "trials", trials)
    code, out, error = call(
        maxfdl.aot.main, *SMALL, "mesh(fsdp=8)", "--search", f"--json={file}"
    )
    assert (code, error) == (0, "")
    assert out.splitlines()[:3] == [
        "as it is: peak 1 B, at least 2 s a step, bound by matrix products",
        "mesh(fsdp=4,tensor=2): peak 1 B, at least 1 s a step, bound by matrix"
        " products",
        "mesh(tensor=8): refused: heads: 4 cannot be cut.",
    ]
    best = "experiments.zoo_smoke+mesh(fsdp=8)+mesh(fsdp=4,tensor=2)"
    value = "--fdl_set=model.decoder.stacks[0].repeats=1"
    assert out.splitlines()[-1] == f"  python -m maxfdl.launch '{best}' '{value}'"
    found = figures(file)
    assert (found["expression"], len(found["trials"])) == (best, 3)
    assert found["roofline_seconds"] == 1.0


def test_ctrl_c_ends_a_search_with_the_best_so_far(call, tmp_path, monkeypatch):
    file, ended = tmp_path / "aot.json", threading.Event()

    def trials(make, devices, budget):
        yield search.Trial((), made_up(2.0))
        yield search.Trial(("remat(policy=full)",), made_up(1.0))
        main = threading.main_thread().ident
        signal.pthread_kill(main or 0, signal.SIGINT)  # while this thread compiles
        ended.wait(60)

    monkeypatch.setattr(search, "trials", trials)
    # A shell that starts tests in the background lets them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, _ = call(maxfdl.aot.main, *SMALL, "--search", f"--json={file}")
    finally:
        signal.signal(signal.SIGINT, before)
        ended.set()
    assert code == 130 and "interrupted; of what was tried so far:" in out
    best = "experiments.zoo_smoke+remat(policy=full)"
    assert f"python -m maxfdl.launch '{best}'" in out.splitlines()[-1]
    assert figures(file)["expression"] == best
