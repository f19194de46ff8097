"""Several processes on this machine, started by one."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from maxfdl.errors import UserError
from maxfdl.run.processes import local

ROLE = "import os, sys, time; i = int(os.environ['JAX_PROCESS_ID']); "


def run(code, count=2):
    command = [sys.executable, "-S", "-c", ROLE + code]
    return local.run(command, local.environments(count, dict(os.environ)))


@pytest.mark.parametrize(
    ("arguments", "count"),
    [([], None), (["--processes=3"], 3), (["x", "-processes", "2", "y=1"], 2)],
)
def test_reads_its_flag_beside_any_other(arguments, count):
    argv = ["launch", "--fdl_config=x", *arguments, "--unknown"]
    assert local.asked_for(argv) == count
    left = [word for word in arguments if word in ("x", "y=1")]
    assert local.without_flags(argv[1:]) == ["--fdl_config=x", *left, "--unknown"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--processes=0"], "0 is not a positive integer"),
        (["--processes=two"], "--processes=two: invalid"),
        (["--processes=2", "--process_id=1"], "give one of the two"),
    ],
)
def test_refuses_in_a_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        local.asked_for(["launch", *arguments])


def test_each_learns_its_place():
    first, second = local.environments(2, {"HOME": "here"})
    assert first["HOME"] == "here" and first["JAX_PROCESS_ID"] == "0"
    assert second["JAX_PROCESS_ID"] == "1" and second["JAX_NUM_PROCESSES"] == "2"
    address = first["JAX_COORDINATOR_ADDRESS"]
    assert address == second["JAX_COORDINATOR_ADDRESS"]
    assert address.startswith("localhost:")


def test_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(local.pathlib.Path, "glob", lambda *_: iter(range(4)))
    ids = [each["JAX_LOCAL_DEVICE_IDS"] for each in local.environments(2, {})]
    assert ids == ["0,1", "2,3"]
    told = local.environments(2, {"JAX_LOCAL_DEVICE_IDS": "0"})
    assert [each["JAX_LOCAL_DEVICE_IDS"] for each in told] == ["0", "0"]


def test_lines_of_all_but_the_first_tell_whose_they_are(capsys):
    assert run("print('hello', i); print('oh', i, file=sys.stderr)") == 0
    out, error = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[1] hello 1", "hello 0"]
    assert sorted(error.splitlines()) == ["[1] oh 1", "oh 0"]


def test_the_first_failure_is_the_exit_code():
    assert run("time.sleep(0.3 * (1 - i)); sys.exit(2 + i)") == 3
    assert run("i and os.kill(os.getpid(), 9)") == 128 + 9


def test_one_that_is_stopped_goes_on_after_a_failure_and_learns_of_it():
    code = "i and (time.sleep(1), sys.exit(7)); os.kill(os.getpid(), 19); print('on')"
    began = time.monotonic()
    assert run(code) == 7
    assert time.monotonic() - began < 50


def test_those_that_do_not_end_after_a_failure_are_ended(monkeypatch):
    monkeypatch.setattr(local, "_GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert run("sys.exit(7) if i else time.sleep(100)") == 7
    assert time.monotonic() - began < 50


def test_a_signal_reaches_each_once(capsys):
    code = """
import signal
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print('ready')
while not got: time.sleep(0.01)
time.sleep(0.2)
print(len(got))
sys.exit(130)
"""
    ready = threading.Event()
    write = sys.stdout.write

    def interrupt():
        ready.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    def seen(text, lines=[]):  # noqa: B006
        lines.extend(text.splitlines())
        if sum("ready" in line for line in lines) == 2:
            ready.set()
        return write(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", seen)
        threading.Thread(target=interrupt).start()
        assert run(code) == 130
    assert sorted(capsys.readouterr().out.split()) == sorted(
        "ready 1 [1] ready [1] 1".split()
    )


@pytest.mark.slow
def test_what_launch_starts_ends_together_in_one_sentence():
    command = [sys.executable, "-m", "maxfdl.launch", "experiments.llama2_smoke"]
    command += ["--processes=2", "model.featurs=64"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "Did you mean 'model.features'?" in done.stderr
    assert "Traceback" not in done.stderr
