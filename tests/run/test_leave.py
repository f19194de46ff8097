"""Tests of last words, and of ending the process from any thread."""

import os
import subprocess
import sys

import pytest

from maxfdl.run.leave import say_error, without_waiting

PROGRAM = """
import atexit, sys, threading, time
from maxfdl.run.leave import leave_now

atexit.register(time.sleep, 60)
threading.Thread(target=time.sleep, args=(60,)).start()
print("printed, not flushed", end="")
threading.Thread(target=leave_now, args=(7,)).start()
time.sleep(60)
"""


def test_the_process_ends_whatever_its_threads_do():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        7,
        "printed, not flushed",
        "",
    )


def test_last_words_need_no_reader(monkeypatch, capsys):
    say_error("first")
    assert capsys.readouterr().err == "first\n"
    closed = open(os.devnull, "w")
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    say_error("second")


COMPILING = """
import sys, threading
from maxfdl.run.leave import BACKGROUND, without_waiting

threading.Thread(target=threading.Event().wait, name=BACKGROUND + "_0").start()
with without_waiting():
    print("refused", file=sys.stderr)
    sys.exit(2)
"""


def test_a_refusal_does_not_wait_for_what_compiles_in_the_background():
    done = subprocess.run(
        [sys.executable, "-c", COMPILING], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (2, "refused\n")


def test_without_such_threads_a_command_ends_as_it_does_anyway():
    with pytest.raises(SystemExit) as end, without_waiting():
        sys.exit(2)
    assert end.value.code == 2
