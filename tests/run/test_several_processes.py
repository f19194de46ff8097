"""Real processes that train together, on one CPU device each."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import fiddle as fdl
import pytest

from maxfdl import graph
from maxfdl.data.sources.files import Files
from maxfdl.run.directory import RunDirectory
from tests.commands import ON_ONE_DEVICE

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = "--fdl_config=experiments.llama2_smoke"
LIMIT = 300  # seconds; what must be fast says so itself


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


class Run:
    """Processes of one run; what is still alive at the end of a test is killed."""

    def __init__(self):
        self._exit = contextlib.ExitStack()

    def start(
        self, directory, *args, config=(SMOKE,), **environment
    ) -> subprocess.Popen:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "maxfdl.launch", *config),
                f"--run_dir={directory}",
                *args,
            ],
            cwd=ROOT,
            env=os.environ | ON_ONE_DEVICE | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._exit.enter_context(process)
        self._exit.callback(process.kill)
        return process

    def start_two(self, directory, *args, first=(), second=(), **config) -> list:
        flags = (f"--coordinator=localhost:{free_port()}", "--num_processes=2")
        own = (first, second)
        return [
            self.start(
                directory, *flags, f"--process_id={index}", *args, *own[index], **config
            )
            for index in range(2)
        ]

    def close(self) -> None:
        self._exit.close()


@pytest.fixture
def run():
    with contextlib.closing(Run()) as run:
        yield run


def ends(process: subprocess.Popen, timeout: float = LIMIT) -> tuple[int, str, str]:
    """Returns exit code, output and errors of a process."""
    out, errors = process.communicate(timeout=timeout)
    # Gloo speaks up in some versions of JAX.
    kept = [line for line in out.splitlines(True) if not line.startswith("[Gloo]")]
    return process.returncode, "".join(kept), errors


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step") and line.split()[1].startswith(f"{step}/"):
            return
    pytest.fail(f"no step {step}: {process.stderr.read()}")


def losses(directory: pathlib.Path) -> dict[int, float]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return {each["step"]: each["loss"] for each in found if "loss" in each}


def died(process: int, pid: int) -> str:
    return (
        f"error: process {process} of 2 (pid {pid} on {socket.gethostname()}) has died:"
        " it was killed, ran out of memory, or its machine cannot be reached. Start all"
        " processes again; a run continues from its last checkpoint.\n"
    )


def check_that_a_run_survives(run: Run, tmp_path, victim: int) -> None:
    args = ("steps=12", "checkpoint.every_steps=3", "trainer.eval_batches=0")
    command = (tmp_path / "two", *args)
    processes = run.start_two(*command)
    wait_for_step(processes[0], 7)
    processes[victim].kill()
    code, _, errors = ends(processes[1 - victim], timeout=35)
    assert (code, errors) == (1, died(victim, processes[victim].pid))

    (code, out, errors), (code_1, out_1, errors_1) = map(ends, run.start_two(*command))
    assert (code, errors, code_1, out_1, errors_1) == (0, "", 0, "", "")
    assert "continuing from step 3\n" in out or "continuing from step 6\n" in out

    assert ends(run.start(tmp_path / "one", *args))[0] == 0
    two, one = losses(tmp_path / "two"), losses(tmp_path / "one")
    assert two == pytest.approx(one, rel=2e-6) and list(two) == list(range(1, 13))


@pytest.mark.slow
def test_a_run_survives_the_death_of_process_0_with_the_losses_of_one_process(
    run, tmp_path
):
    check_that_a_run_survives(run, tmp_path, victim=0)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_survives_the_death_of_process_1_with_the_losses_of_one_process(
    run, tmp_path
):
    check_that_a_run_survives(run, tmp_path, victim=1)


def test_processes_that_are_not_one_run_are_all_refused_with_the_difference(
    run, tmp_path
):
    processes = run.start_two(
        tmp_path / "a",
        first=["steps=30"],
        second=["--stop_at=5", f"--run_dir={tmp_path / 'b'}"],
    )
    difference = (
        "process 0 and process 1 are not one run; start all with the same command, on"
        " machines that see the same files:\n"
        "  the graph, from process 0 to process 1:\n"
        "    ~ steps: 30 -> 20\n"
        f"  --run_dir: {tmp_path / 'a'} in process 0, {tmp_path / 'b'} in process 1\n"
        "  --stop_at: none in process 0, 5 in process 1\n"
    )
    for process, who in zip(
        processes, ("process 1 of 2 was refused: ", ""), strict=True
    ):
        assert ends(process) == (2, "", f"error: {who}{difference}")
    assert not list((tmp_path / "a").glob("config*"))


@pytest.mark.parametrize(
    "refused, args, why",
    [
        (0, ["--stop_att=3"], "unknown flag --stop_att. Did you mean 'stop_at'?"),
        (1, ["--stop_at=x"], "flag --stop_at=x: invalid literal for int() with base"),
        (1, ["steps=0"], "Experiment steps (0) must be positive."),
    ],
)
def test_a_process_that_is_refused_takes_the_other_with_it(
    run, tmp_path, refused, args, why
):
    own = {("first", "second")[refused]: args}
    processes = run.start_two(tmp_path, **own)
    code, out, errors = ends(processes[refused])
    assert (code, out) == (2, "") and errors.startswith("error: ") and why in errors
    sentence = errors.removeprefix("error: ")
    assert ends(processes[1 - refused]) == (
        2,
        "",
        f"error: process {refused} of 2 was refused: {sentence}",
    )


@pytest.mark.slow
def test_processes_that_open_mpi_starts_stop_after_the_same_step(run, tmp_path):
    mpi = {
        "OMPI_MCA_orte_hnp_uri": "1234.0;tcp://127.0.0.1:4444",
        "OMPI_COMM_WORLD_SIZE": "2",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    }
    first, second = [
        run.start(
            tmp_path,
            "steps=2000",
            **mpi,
            OMPI_COMM_WORLD_RANK=str(rank),
            OMPI_COMM_WORLD_LOCAL_RANK=str(rank),
        )
        for rank in range(2)
    ]
    wait_for_step(first, 3)
    second.send_signal(signal.SIGTERM)
    code, out, errors = ends(first)
    assert (code, errors) == (143, "")
    assert ends(second) == (143, "", "")
    last = out.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step ")
    step = last.split(" step ")[1].split(";")[0]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [step]
    assert list(losses(tmp_path)) == list(range(1, int(step) + 1))


@pytest.mark.slow
def test_a_process_may_be_stopped_for_less_than_the_heartbeat(run, tmp_path):
    args = (tmp_path, "steps=100000", "--heartbeat_timeout=20")
    first, second = run.start_two(*args)
    wait_for_step(first, 3)
    second.send_signal(signal.SIGSTOP)
    time.sleep(15)
    second.send_signal(signal.SIGCONT)
    time.sleep(3)  # for signs of life
    second.send_signal(signal.SIGSTOP)
    code, _, errors = ends(first, timeout=30)
    assert code == 1 and errors.count("\n") == 1
    sentence = f"error: process 1 of 2 (pid {second.pid} on {socket.gethostname()}) has"
    assert errors.startswith(f"{sentence} not answered for 20 s: it is stopped, hangs,")
    second.send_signal(signal.SIGCONT)
    assert ends(second)[::2] == (1, errors)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_before_the_first_step_a_signal_to_one_process_ends_both(run, tmp_path, who):
    processes = run.start_two(tmp_path)
    for line in processes[0].stdout:
        if "39,072 parameters" in line:
            break
    time.sleep(1)
    processes[who].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    for process in processes:
        code, _, errors = ends(process)
        assert (code, errors) == (
            143,
            f"process {who} of 2 was stopped by SIGTERM with nothing to save\n",
        )
    assert time.monotonic() - sent < 3


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_bad_line_in_the_share_of_one_process_loses_no_step(run, tmp_path):
    lines = [{"text": f"document {i} has some words to learn from"} for i in range(600)]
    lines[401]["text"] = None
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    config = graph.resolve("experiments.llama2_smoke")
    config.data.source = fdl.Config(Files, files=(str(text),))
    config.data.shuffle, config.steps = False, 200
    (tmp_path / "graph.json").write_text(graph.dump_json(config))
    args = (tmp_path / "run", f"--fdl_config_file={tmp_path / 'graph.json'}")

    processes = run.start_two(*args, config=())
    (code_0, out, errors_0), (code_1, _, errors_1) = map(ends, processes)
    assert (code_0, code_1) == (2, 2)
    bad = f"Files.files [{text}] line 402 must have a string under 'text'"
    assert bad in errors_0 and bad in errors_1
    (step,) = (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert f" after step {step}; run the same command to continue" in out
    assert list(losses(tmp_path / "run")) == list(range(1, step + 1)) and step > 10

    processes = run.start_two(*args, "data.skip_bad=1", config=())
    (code, out, _), (code_1, *_) = map(ends, processes)
    assert (code, code_1) == (0, 0) and f"continuing from step {step}\n" in out
    assert list(losses(tmp_path / "run")) == list(range(1, 201))


def test_a_directory_in_use_is_refused_by_all_processes(run, tmp_path):
    directory = RunDirectory(tmp_path)
    directory.lock()
    first, second = run.start_two(tmp_path)
    sentence = f"Run directory {tmp_path} is in use by process {os.getpid()} on "
    assert ends(first)[2].startswith(f"error: {sentence}")
    code, _, errors = ends(second)
    assert code == 2
    assert errors.startswith(f"error: process 0 of 2 was refused: {sentence}")
    directory.unlock()


@pytest.mark.slow
def test_processes_whose_output_nobody_reads_stop_and_save_together(run, tmp_path):
    first, second = run.start_two(tmp_path, "steps=2000")
    wait_for_step(first, 3)
    first.stdout.close()
    assert [process.wait(LIMIT) for process in (first, second)] == [141, 141]
    assert first.stderr.read() == second.stderr.read() == ""
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert list(losses(tmp_path)) == list(range(1, step + 1))


@pytest.mark.slow
def test_each_process_may_train_a_replica_of_its_own_and_the_rest_go_on(run, tmp_path):
    """The numbers are those of two replicas that take turns in one process."""
    args = ("steps=400", "checkpoint.every_steps=6", "trainer.eval_batches=0")
    args += ("trainer.log_every=1",)
    diloco = (SMOKE, "--fiddler=use_diloco(num_replicas=2,sync_period=3)")
    apart = (*diloco, "--fiddler=mesh(replica=2)")
    processes = run.start_two(tmp_path / "two", *args, config=apart)
    wait_for_step(processes[0], 8)
    processes[1].kill()
    code, _, errors = ends(processes[0], timeout=35)
    assert (code, errors) == (1, died(1, processes[1].pid))
    alone = run.start(tmp_path / "one", "--stop_at=7", *args, config=diloco)
    assert ends(alone)[::2] == (0, "")
    lines = [
        [
            json.loads(x)
            for x in (tmp_path / n / "metrics.jsonl").read_text().splitlines()[:7]
        ]
        for n in ("one", "two")
    ]
    assert len(lines[0]) == len(lines[1]) == 7
    for one, two in zip(*lines, strict=True):
        names = [k for k in one if "loss" in k or "drift" in k or k == "bytes_sent"]
        assert {name: two[name] for name in names} == pytest.approx(
            {name: one[name] for name in names}, rel=1e-4
        )
    left = ("trainer.num_replicas=1", "mesh.replica=1", "checkpoint.every_steps=400")
    rest = run.start(tmp_path / "two", *args, *left, config=apart)
    code, out, errors = ends(rest)
    assert (code, errors) == (0, "")
    assert "trainer.num_replicas 2 -> 1" in out and "continuing from step " in out
