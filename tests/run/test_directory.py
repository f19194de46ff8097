"""Tests of the directory that a run writes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from maxfdl.data import ByteTokenizer, HuggingFaceTokenizer
from maxfdl.errors import UserError
from maxfdl.files import write_atomically
from maxfdl.run.directory import RunDirectory

HOLD = """
import sys, time
from maxfdl.run.directory import RunDirectory

RunDirectory(sys.argv[1]).lock()
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other_run(tmp_path):
    """A live process that has the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_makes_the_directory_and_its_parents(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "tiny")
    assert run.path.is_dir()
    assert run.checkpoints == run.path / "checkpoints"


def test_writes_what_the_run_was_started_from(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.config_json() is None
    run.write(config_json="{}", config_text="name = 'é'", command="python -m x")
    assert run.config_json() == "{}"
    assert (tmp_path / "config.txt").read_text() == "name = 'é'"
    assert (tmp_path / "command.txt").read_text() == "python -m x"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_write_leaves_the_old_text(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"


def test_a_second_live_run_is_refused_at_once(tmp_path, other_run):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        RunDirectory(tmp_path).lock()
    assert time.monotonic() - start < 1
    assert f"is in use by process {other_run.pid} on {os.uname().nodename}" in str(
        error.value
    )


def test_a_killed_run_blocks_nobody(tmp_path, other_run):
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    run = RunDirectory(tmp_path)
    run.lock()
    run.unlock()


def test_a_run_that_has_ended_blocks_nobody(tmp_path):
    for _ in range(2):
        run = RunDirectory(tmp_path)
        run.lock()
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            RunDirectory(tmp_path).lock()
        run.unlock()


def test_a_file_in_its_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used \(File exists"):
        RunDirectory(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be used \(Not a directory"):
        RunDirectory(tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"cannot be used \(Permission denied"):
        RunDirectory(tmp_path / "run")
    with pytest.raises(UserError, match=r"cannot be used \(Permission denied"):
        RunDirectory(tmp_path).lock()


def test_it_keeps_a_tokenizer_that_stands_alone(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    for _ in range(2):  # the second start writes it anew
        directory.write_tokenizer(ByteTokenizer())
    kept = HuggingFaceTokenizer(str(tmp_path / "run/tokenizer/tokenizer.json"))
    text = "any text, <|eos|> too"
    assert kept.encode_document(text).tolist() == (
        ByteTokenizer().encode_document(text).tolist()
    )
    assert not directory.has_results()
    assert [path.name for path in directory.path.iterdir()] == ["tokenizer"]


def test_a_tokenizer_that_cannot_be_written_leaves_the_old_one(tmp_path):
    class Broken(ByteTokenizer):
        def save(self, folder):
            super().save(folder)
            raise OSError(28, "No space left on device")

    directory = RunDirectory(tmp_path / "run")
    directory.write_tokenizer(ByteTokenizer())
    with pytest.raises(UserError, match="cannot be used .No space left on device"):
        directory.write_tokenizer(Broken())
    assert [path.name for path in directory.path.iterdir()] == ["tokenizer"]
    assert len(list((directory.path / "tokenizer").iterdir())) == 3
