"""`python -m maxfdl.launch`, as a user meets it: whole runs of `llama2_smoke`.

Runs that are compared bit by bit are processes of their own with one device. The
rest is called in this process, on its eight virtual devices.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import fiddle as fdl
import jax
import numpy as np
import pytest
from absl import flags
from fiddle.experimental import serialization

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.train.program import Program
from tests.commands import ON_ONE_DEVICE

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "--fdl_config=experiments.llama2_smoke"


def start(directory: pathlib.Path, *args: str, **environment: str) -> subprocess.Popen:
    """Starts a launcher on one CPU device."""
    return subprocess.Popen(
        [sys.executable, "-m", "maxfdl.launch", SMOKE, f"--run_dir={directory}", *args],
        cwd=ROOT,
        env=os.environ | ON_ONE_DEVICE | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(directory: pathlib.Path, *args: str) -> str:
    """Runs a launcher that must succeed and complain of nothing; returns its output."""
    process = start(directory, *args)
    out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    return out


def metrics(directory: pathlib.Path) -> list[dict]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(directory: pathlib.Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in metrics(directory) if "loss" in m]


def final_params(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the parameters of the newest checkpoint, by path."""
    experiment = graph.build(graph.load_json((directory / "config.json").read_text()))
    sharding = experiment.make_sharding(jax.devices()[:1])
    program = Program(experiment.make_trainer(sharding), 8, 64)
    checkpointer = Checkpointer(directory=directory / "checkpoints")
    wanted = {"params": program.abstract_state()["params"]}
    params = checkpointer.read(checkpointer.latest(), wanted)
    flat = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
    """Both runs have the same losses and parameters, to the last bit."""
    assert losses(a) == losses(b)
    params_a, params_b = final_params(a), final_params(b)
    assert params_a.keys() == params_b.keys()
    for path, values in params_a.items():
        assert values.tobytes() == params_b[path].tobytes(), path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[pathlib.Path, str]:
    """An uninterrupted run, and what it printed."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, launch(directory)


def test_a_run_says_what_it_does(whole):
    directory, out = whole
    attention, *lines = out.splitlines()
    assert attention == "attention: xla (cpu)"
    assert lines[0] == (
        "llama2_smoke: 39,072 parameters, 20 steps of 512 tokens, on 1 x cpu, into"
        f" {directory}"
    )
    assert [line.split()[1] for line in lines[1:21]] == [
        f"{i}/20" for i in range(1, 21)
    ]
    assert lines[21].startswith("held out after step 20: loss ")
    assert lines[22:] == [f"finished 20 steps; everything is in {directory}"]


def test_a_run_learns(whole):
    values = [loss for _, loss in losses(whole[0])]
    assert values[0] == pytest.approx(np.log(320), abs=0.5)
    assert values[-1] < values[0] - 2


def test_a_run_leaves_its_files(whole):
    directory, _ = whole
    names = {path.name for path in directory.iterdir()}
    assert names == {
        "checkpoints",
        "command.txt",
        "config.json",
        "config.txt",
        "metrics.jsonl",
        "run.lock",
        "tensorboard",
        "tokenizer",
    }
    cfg = graph.load_json((directory / "config.json").read_text())
    assert cfg == graph.resolve("experiments.llama2_smoke")
    assert (directory / "config.txt").read_text() == graph.as_text(cfg)
    assert (directory / "command.txt").read_text() == (
        f"python -m maxfdl.launch {SMOKE} --run_dir={directory}\n"
    )
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["20"]
    assert len(list((directory / "tensorboard").glob("events.out.tfevents.*"))) == 1


ROLES = ("", "/kernel", "/embedding", "/scale")


def test_every_step_is_in_the_metrics(whole):
    *steps, evaluation = metrics(whole[0])
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert all(
        line.keys()
        == {
            "step",
            "loss",
            "cross_entropy",
            *(f"grad_norm{role}" for role in ROLES),
            *(f"param_norm{role}" for role in ROLES),
            "learning_rate",
            "packed",
            "documents_per_row",
            "skipped",
            "skipped_in_a_row",
            "tokens_seen",
            "step_seconds",
            "tokens_per_second",
        }
        for line in steps
    )
    assert [line["tokens_seen"] for line in steps] == [512 * n for n in range(1, 21)]
    assert evaluation.keys() == {
        "step",
        "eval_loss",
        "eval_cross_entropy",
        "eval_nats_per_byte",
    }
    assert [m["loss"] == m["cross_entropy"] for m in steps] == [True] * 20


def test_ten_steps_and_ten_more_are_twenty_to_the_last_bit(whole, tmp_path):
    out = launch(tmp_path, "--stop_at=10")
    assert out.endswith(
        "stopped by --stop_at=10 after step 10; run the same command without"
        " --stop_at=10 to continue\n"
    )
    out = launch(tmp_path)
    assert out.splitlines()[2] == "continuing from step 10"
    assert_same_run(whole[0], tmp_path)


# What follows is called in this process.


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Runs a command line here; returns exit code, output, errors."""
    from maxfdl import commandline
    from maxfdl import launch as command

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch.py", *args])
        with pytest.raises(SystemExit) as end:
            commandline.run(command.main)
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        return end.value.code or 0, *capsys.readouterr()

    return run


def complaint(done: tuple[int, str, str]) -> str:
    """Returns the one sentence of a command that was refused."""
    code, out, errors = done
    assert (code, out) == (2, ""), errors
    assert errors.startswith("error: ") and errors.endswith("\n")
    return errors.removeprefix("error: ").removesuffix("\n")


def snapshot(directory: pathlib.Path) -> dict[pathlib.Path, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != "run.lock"}


def test_a_finished_run_says_so_and_changes_nothing(whole, call):
    directory, _ = whole
    (directory / "command.txt").unlink()  # the one file that may differ
    before = snapshot(directory)
    code, out, errors = call(SMOKE, f"--run_dir={directory}")
    assert (code, errors) == (0, "")
    assert out.splitlines()[2:] == [
        f"finished 20 steps in an earlier start; everything is in {directory}; set"
        " steps higher to go on, or give another --run_dir to train anew"
    ]
    (directory / "command.txt").unlink()
    assert snapshot(directory) == before


def test_a_directory_with_another_run_is_refused_with_the_difference(whole, call):
    directory, _ = whole
    before = snapshot(directory)
    changes = ("use_lion", "steps=30", "remat(policy=dots)", "--extend")
    done = call(SMOKE, f"--run_dir={directory}", *changes)
    assert complaint(done) == (
        f"{directory} holds a run of another graph; give another --run_dir (with"
        f" init_from={directory} it begins with the weights of this one, but at step 0,"
        " with a new optimizer and the data from its beginning), or undo the"
        " difference:\n"
        "  * maxfdl.optim.transforms.Adam -> maxfdl.optim.transforms.Lion  (1 node:"
        " optimizer.rule)\n"
        "  ~ optimizer.rule.b2: 0.95 -> 0.99\n"
        "  - optimizer.rule.epsilon = 1e-08"
    )
    assert snapshot(directory) == before


def test_more_steps_where_the_rate_has_fallen_to_the_end_need_to_be_asked_for(
    whole, call
):
    directory, _ = whole
    before = snapshot(directory)
    text = complaint(call(SMOKE, f"--run_dir={directory}", "steps=30"))
    assert "and steps 20 -> 30 moves that end to step 30; after step 20 add" in text
    assert "--extend" in text and "optimizer.schedule.decay_steps=16 to keep" in text
    assert snapshot(directory) == before


def test_fewer_steps_than_were_taken_say_so_and_change_nothing(whole, call):
    directory, _ = whole
    before = snapshot(directory)
    code, out, errors = call(SMOKE, f"--run_dir={directory}", "steps=9")
    assert (code, errors) == (0, "")
    assert out.splitlines()[2:] == [
        "finished 20 steps in an earlier start, and this graph asks for 9; everything"
        f" is in {directory}; set steps higher to go on, or give another --run_dir to"
        " train anew"
    ]
    assert snapshot(directory) == before


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh_more_steps_and_other_habits(
    whole, call, tmp_path
):
    """The run of one device goes on with eight."""
    shutil.copytree(whole[0], tmp_path / "run")
    args = (SMOKE, "--run_dir=run", "mesh(data=4,tensor=2)", "steps=22", "remat(full)")
    quiet = ("trainer.log_every=2", "trainer.eval_batches=0")
    code, out, errors = call(*args, *quiet, "--extend", "--stop_at=21")
    assert (code, errors) == (0, "")
    assert out.splitlines()[:1] == [
        "continuing with model.decoder.stacks[0].remat 'none' -> 'full', mesh.data 1 ->"
        " 4, mesh.fsdp -1 -> 1, mesh.tensor 1 -> 2, trainer.log_every 1 -> 2,"
        " trainer.eval_batches 2 -> 0, steps 20 -> 22; the learning rate now falls to"
        " its end at step 22, and not at 20: that of the next step is 0.00127, and not"
        " 0.001"
    ]
    assert "continuing from step 20\n" in out
    assert "steps = 22\n" in (tmp_path / "run/config.txt").read_text()
    # From now on it is a run of 22 steps, although two checkpoints say otherwise.
    code, out, errors = call(*args, *quiet)
    assert (code, errors) == (0, "") and "continuing with" not in out
    assert [step for step, _ in losses(tmp_path / "run")] == list(range(1, 23))


def test_a_run_without_its_config_is_known_by_its_checkpoints(whole, call):
    directory, _ = whole
    config = (directory / "config.json").read_bytes()
    change, line = "optimizer.schedule.peak=0.5", "~ optimizer.schedule.peak: 0.01 -> "
    try:
        (directory / "config.json").unlink()
        text = complaint(call(SMOKE, f"--run_dir={directory}", change))
        assert text.startswith(f"{directory} holds a run of another graph;")
        assert text.endswith(f"\n  {line}0.5")
        other = graph.set_value(graph.load_json(config.decode()), *change.split("="))
        (directory / "config.json").write_text(graph.dump_json(other))
        text = complaint(call(SMOKE, f"--run_dir={directory}"))
        assert f"{directory}: config.json and checkpoints/20 are graphs of two" in text
    finally:
        (directory / "config.json").write_bytes(config)


def test_a_directory_where_nothing_ran_takes_another_graph(call, tmp_path):
    args = (SMOKE, "--run_dir=run")
    assert "mesh {'data': 3," in call(*args, "mesh(data=3)")[2]
    assert (
        "batch_size, sequence_length: dim 'batch' of size 6"
        in call(*args, "batch_size=6")[2]
    )
    assert "batch_size = 6" in (tmp_path / "run/config.txt").read_text()


@pytest.mark.slow
def test_it_trains_on_eight_devices_with_all_kinds_of_changes(call, tmp_path):
    (tmp_path / "overrides.py").write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n"
        "    return config_dict.ConfigDict({'steps': 4, 'trainer': {'log_every': 2}})\n"
    )
    code, out, errors = call(
        SMOKE,
        "mesh(fsdp=4, tensor=2)",
        "--fdl_overrides=overrides.py",
        "--fdl_tags_set=ComputeDType=bfloat16",
        "--fdl_set=seed=3",
        "trainer.eval_batches=0",
        "--profile_steps=2:3",
    )
    assert (code, errors) == (0, "")
    directory = tmp_path / "runs/llama2_smoke"
    assert "4 steps of 512 tokens, on 8 x cpu, into" in out
    assert [step for step, _ in losses(directory)] == [1, 2, 4]
    text = (directory / "config.txt").read_text()
    for line in ("model.dtype = 'bfloat16'", "seed = 3", "mesh.tensor = 2"):
        assert f"\n{line}\n" in text
    assert len(list(directory.glob("profile/plugins/profile/*/*.xplane.pb"))) == 1


@pytest.mark.parametrize(
    "args, message",
    [
        (
            ["--fdl_config=experiments.llama2_smok"],
            "experiments has no 'llama2_smok'. Did you mean 'experiments.llama2_smoke'",
        ),
        (
            ["llama2_nnx"],
            "'llama2_nnx' is not in experiments, fdl_configs. Did you mean"
            " 'experiments.llama2_nnx'?",
        ),
        (
            ["--fdl_config=experiments.llama2_nnx(size=8b)"],
            "experiments.llama2_nnx: size=8b: expected Literal['tiny', '7b', '13b',"
            " '70b'], got str '8b'.",
        ),
        (
            [SMOKE, "--fiddler=to_linnen"],
            "no mutation 'to_linnen'. Did you mean 'to_linen' or 'to_nnx'?",
        ),
        (
            [SMOKE, "--fiddler=remat(policy=ful)"],
            "remat: policy=ful: expected Literal['none', 'full', 'dots',",
        ),
        (
            [SMOKE, "--fdl_set=model.featurs=3"],
            "no such path 'model.featurs': model (Transformer) has no field 'featurs'."
            " Did you mean 'model.features'?",
        ),
        (
            [SMOKE, "features=3"],
            "no such path 'features': <root> (Experiment) has no field 'features'. Did"
            " you mean 'model.features'?",
        ),
        (
            [SMOKE, "model.features=many"],
            "model.features=many: expected int, got str 'many'.",
        ),
        (
            [SMOKE, "--fdl_tags_set=ComputeDType=bf16"],
            "model.dtype=bf16: expected Literal['float32', 'bfloat16', 'float16',"
            " 'float64'], got str 'bf16'. Did you mean 'bfloat16'?",
        ),
        (
            [SMOKE, "--fdl_tags_set=ComputeDtype=bfloat16"],
            "no tag 'ComputeDtype' in this graph. Did you mean 'ComputeDType'?",
        ),
        ([SMOKE, "--rundir=x"], "unknown flag --rundir. Did you mean"),
        (
            [SMOKE, "--fdl_overrides=no.py"],
            "no.py: there is no such file of overrides.",
        ),
        (["--fdl_config_file=no.json"], "no.json cannot be read: no such file or"),
        ([SMOKE, "--stop_at=0"], "flag --stop_at=0: 0 is not a positive integer"),
        ([SMOKE, "--profile_steps=a"], "--profile_steps=a must be two steps, such as"),
        (
            [SMOKE, "--profile_steps=19:21"],
            "--profile_steps=19:21 must end by the last step, 20.",
        ),
    ],
)
def test_a_mistake_is_one_line_with_a_suggestion(call, args, message):
    text = complaint(call(*args))
    assert text.startswith(message) and "\n" not in text


def test_all_that_is_wrong_with_the_values_is_said_at_once(call):
    done = call(SMOKE, "steps=0", "name=../../x", "mesh.fsdp=0")
    assert complaint(done) == (
        "invalid config:\n"
        "  <root>: Experiment name ('../../x') must be letters, digits and '_.+-', for"
        " it names the run directory.\n"
        "  <root>: Experiment steps (0) must be positive.\n"
        "  mesh: MeshShape axes ({'fsdp': 0}) must be positive,"
        " or -1 for the rest."
    )


def system(command: str) -> None:
    """Stands for `os.system`, which Fiddle does not save but would load."""


def with_os_system() -> str:
    cfg = graph.resolve("experiments.llama2_smoke")
    cfg.loss = fdl.Config(system, command="touch ran")
    return serialization.dump_json(cfg).replace(f'"{__name__}"', '"os"')


def with_loss_of(module: str, name: str) -> str:
    saved = graph.dump_json(graph.resolve("experiments.llama2_smoke"))
    honest = '"module": "maxfdl.ops.cross_entropy", "name": "CrossEntropy"'
    compact = json.dumps(json.loads(saved))
    assert honest in compact
    return compact.replace(honest, f'"module": "{module}", "name": "{name}"')


def with_name(name: str) -> str:
    saved = graph.dump_json(graph.resolve("experiments.llama2_smoke"))
    return saved.replace('"llama2_smoke"', f'"{name}"')


@pytest.mark.parametrize("spelling", ["--fdl_config_file={}", "--fdl_config={}"])
@pytest.mark.parametrize(
    "text, message",
    [
        (with_os_system(), "a saved graph may not name 'os.system'"),
        (with_loss_of("side_effect", "Loss"), "may not name 'side_effect.Loss'"),
        (with_loss_of("../../x", "y"), "may not name '../../x.y'"),
        (with_name("../../x"), "Experiment name ('../../x') must be letters"),
    ],
    ids=["os.system", "side effect", "name of a path", "run directory"],
)
def test_a_hostile_graph_is_refused_and_runs_nothing(
    call, tmp_path, monkeypatch, text, message, spelling
):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "import pathlib; pathlib.Path('ran').touch()\nclass Loss: pass\n"
    (tmp_path / "side_effect.py").write_text(code)
    (tmp_path / "hostile.json").write_text(text)
    before = set(tmp_path.iterdir())
    assert message in complaint(call(spelling.format("hostile.json")))
    assert set(tmp_path.iterdir()) == before
    assert "side_effect" not in sys.modules


def test_a_saved_graph_can_be_named_instead_of_an_experiment(whole, call):
    saved = whole[0] / "config.json"
    for args in ([f"--fdl_config_file={saved}"], [f"{saved}+to_linen", "to_nnx"]):
        code, out, _ = call(*args, f"--run_dir={whole[0]}")
        assert code == 0 and "finished 20 steps in an earlier start" in out


# The slow part: runs that are cut short by force.

LONG = ("steps=200", "checkpoint.every_steps=40")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("long")
    launch(directory, *LONG)
    return directory


def signal_after(process: subprocess.Popen, step: int, number: signal.Signals) -> None:
    """Sends a signal when the line of `step` is out."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step") and line.split()[1].startswith(f"{step}/"):
            return process.send_signal(number)
    pytest.fail(f"no step {step}: {process.stderr.read() if process.stderr else ''}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_and_goes_on_to_the_last_bit(long_run, tmp_path, number):
    process = start(tmp_path, *LONG)
    signal_after(process, 50, number)
    out, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (128 + number, "")
    last = out.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name} after step ")
    assert last.endswith("; run the same command to continue")
    step = int(last.split(" step ")[1].split(";")[0])
    assert 50 <= step < 200
    assert f"continuing from step {step}\n" in launch(tmp_path, *LONG)
    assert_same_run(long_run, tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_save_to_the_last_bit(long_run, tmp_path):
    process = start(tmp_path, *LONG)
    signal_after(process, 100, signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    out = launch(tmp_path, *LONG)
    assert "continuing from step 80\n" in out or "continuing from step 40\n" in out
    assert_same_run(long_run, tmp_path)


@pytest.mark.slow
def test_a_second_launcher_keeps_out_of_a_run_that_goes_on(tmp_path, call):
    process = start(tmp_path, *LONG)
    signal_after(process, 1, signal.SIGSTOP)
    try:
        text = complaint(call(SMOKE, *LONG, f"--run_dir={tmp_path}"))
    finally:
        process.kill()
        process.communicate()
    assert f"is in use by process {process.pid} on " in text
