"""`python -m maxfdl.checkpoint ...`."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import llama2_smoke
from maxfdl import graph
from maxfdl.checkpoint.__main__ import main
from maxfdl.checkpoint.checkpointer import Checkpointer, NoData
from maxfdl.checkpoint.on_disk import StepOnDisk, differences, one_step
from maxfdl.run.directory import RunDirectory
from tests import tiny
from tests.commands import Caller, complaint


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls the command; returns code, output, errors."""
    caller = Caller(monkeypatch, capsys)
    return lambda *args: caller(main, *map(str, args), takes_config=False)


@pytest.fixture
def save(tmp_path):
    """Saves states as the steps of a run, and returns its directory."""

    def save(name, states, graph_json="{}"):
        checkpointer = Checkpointer(directory=tmp_path / name / "checkpoints", keep=9)
        for step, state in states.items():
            checkpointer.save(step, state, NoData(), graph_json, allow_non_finite=True)
        checkpointer.close()
        return tmp_path / name

    return save


@pytest.fixture
def run(save, make_state):
    return save("run", {step: make_state(step) for step in (1, 2)})


def flip_a_bit(step):
    """Of the largest file of a step, which holds arrays."""
    files = [path for path in step.rglob("*") if path.is_file()]
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_lists_steps_with_sizes(run, call):
    code, out, error = call("list", run)
    assert (code, error) == (0, "")
    assert re.fullmatch(
        r"( +[12]  +[\d.]+ KiB  \d{4}-\d\d-\d\d \d\d:\d\d  verified\n){2}", out
    )


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_flipped_bit_is_found(run, call, command):
    flip_a_bit(run / "checkpoints" / "1")
    code, out, error = call(command, run)
    assert (code, error) == (1, "")
    first, second = out.splitlines()
    assert "damaged" in first and ("verified" in second or "as it was" in second)
    assert call(command, run / "checkpoints" / "2")[0] == 0


def test_large_steps_are_listed_without_being_read(run, call, monkeypatch):
    monkeypatch.setattr("maxfdl.checkpoint.__main__._READ_AT_ONCE", 1)
    flip_a_bit(run / "checkpoints" / "2")
    code, out, _ = call("list", run)
    assert code == 0 and out.count("arrays not read (--verify)") == 2
    assert call("list", run, "--verify")[0] == 1


def test_inspect_shows_every_array(run, save, make_state, call):
    state = make_state(1)
    kernel = np.array(state["params"]["kernel"])
    norm = np.sqrt(np.sum(np.float64(kernel) ** 2))
    _, out, _ = call("inspect", run, 1)
    (line,) = [each for each in out.splitlines() if each.startswith("params.kernel")]
    assert line.split() == f"params.kernel [16, 24] float32 norm {norm:.6g}".split()
    assert "optimizer.0.mu.kernel " in out and "seen  " in out

    kernel[0, :3] = np.nan, np.inf, -np.inf
    state["params"]["kernel"] = jnp.asarray(kernel)
    _, out, _ = call("inspect", save("other", {1: state}))
    (line,) = [each for each in out.splitlines() if "params.kernel" in each]
    rest = np.sqrt(np.nansum(np.float64(kernel.flatten()[3:]) ** 2))
    assert line.endswith(f"norm {rest:.6g}  3 not finite")
    assert out.endswith("3 of them not finite\n")


def test_equal_steps_compare_equal(run, save, make_state, call):
    other = save("other", {7: make_state(2)})
    assert call("compare", run, other) == (0, "all 10 arrays are equal\n", "")


def test_compare_names_what_differs(save, call):
    a = {"x": jnp.arange(4.0), "y": jnp.zeros(2), "z": jnp.ones(3), "n": jnp.nan}
    a["n"] = jnp.array([jnp.nan, 1.0])
    b = {"x": a["x"].at[2].add(0.25), "y": jnp.zeros(3), "w": jnp.int32(1), "n": a["n"]}
    folders = save("a", {1: a}), save("b", {1: b})
    code, out, _ = call("compare", *folders)
    assert code == 1
    assert sorted(out.splitlines()) == [
        "+ w int32[]",
        "- z float32[3]",
        "~ x: 1 of 4 elements differ, by 0.25 at most",
        "~ y: float32[2] -> float32[3]",
    ]
    assert "~ x" not in call("compare", *folders, "--atol=0.25")[1]
    assert "~ x" in call("compare", *folders, "--atol=0.24")[1]


def test_a_nan_differs_from_a_number(save):
    folders = save("a", {1: {"x": jnp.ones(2)}}), save("b", {1: {"x": jnp.ones(2)}})
    steps = [one_step(str(each)) for each in folders]
    assert not [*differences(steps[0], steps[1])]
    other = save("c", {1: {"x": jnp.array([1.0, jnp.nan])}})
    (line,) = differences(steps[0], one_step(str(other)), atol=1e9)
    assert line.startswith("~ x: 1 of 2 elements differ")


def test_prune_removes_the_oldest(save, make_state, call):
    run = save("run", {step: make_state(step) for step in (1, 2, 3)})
    code, out, _ = call("prune", run, "--keep=1", "--dry_run")
    assert code == 0 and out.count("would remove") == 2
    assert len([*run.glob("checkpoints/[0-9]*")]) == 3
    call("prune", run, "--keep=2")
    assert {path.name for path in run.glob("checkpoints/[0-9]*")} == {"2", "3"}


def test_prune_removes_nothing_that_may_be_needed(run, call):
    flip_a_bit(run / "checkpoints" / "2")
    assert "is whole; nothing is removed" in complaint(call("prune", run, "--keep=1"))
    assert (run / "checkpoints" / "1").is_dir()


def test_prune_leaves_a_run_alone_that_goes_on(run, call):
    directory = RunDirectory(run)
    directory.lock()
    assert "is in use by" in complaint(call("prune", run, "--keep=1"))
    directory.unlock()


def test_params_only_is_a_run_without_optimizer_state(save, tmp_path, call):
    config = llama2_smoke.experiment()
    json = graph.dump_json(config)
    state = tiny.begin(tiny.program(config))
    run = save("whole", {4: state}, json)
    (run / "config.json").write_text(json)
    code, out, error = call("params-only", run, f"--to={tmp_path / 'small'}")
    assert (code, error) == (0, ""), error
    lines = [*differences(one_step(str(run)), one_step(str(tmp_path / "small")))]
    assert lines and all(line.startswith("- ") for line in lines)
    gone = {line.split()[1].split(".")[0] for line in lines}
    assert gone == {"guard", "optimizer", "param_norm", "step"}
    done = call("params-only", run, f"--to={tmp_path / 'small'}")
    assert "holds a run; give another --to" in complaint(done)


def test_bench_measures_both_kinds(call, tmp_path):
    code, out, _ = call("bench", "--megabytes=1", "--times=1", f"--folder={tmp_path}")
    assert code == 0 and not [*tmp_path.iterdir()]
    names = [line.split("  ")[0] for line in out.splitlines()[2:]]
    assert names == ["verified", "Orbax alone", "ratio"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "checkpoint needs a command: list, verify,"),
        (["lst", "x"], "no command 'lst'. Did you mean 'list'?"),
        (["list"], "usage: maxfdl checkpoint list RUN."),
        (["list", "nowhere"], "nowhere must be the directory of a run that has saved"),
        (["verify", "RUN", "3"], "has no step 3; it holds 1, 2."),
        (["inspect", "RUN", "newest"], "STEP ('newest') must be a number"),
        (["prune", "RUN"], "prune needs --keep=N"),
        (["params-only", "RUN"], "params-only needs --to=RUN_DIR"),
        (
            ["bench", "--folder=RUN/none"],
            "bench cannot write to RUN/none (No such file",
        ),
    ],
)
def test_refuses_in_a_sentence(run, call, words, sentence):
    words = [word.replace("RUN", str(run)) for word in words]
    told = complaint(call(*words)).replace(str(run), "RUN")
    assert sentence in told


def test_the_run_may_be_a_flag(run, call):
    assert call("verify", "2", f"--run_dir={run}")[1].startswith("step 2: every bit")


def test_a_step_knows_its_size(run):
    step = StepOnDisk(run / "checkpoints" / "1")
    files = [p.stat().st_size for p in step.path.rglob("*") if p.is_file()]
    assert step.num_bytes == sum(files) and step.step == 1
