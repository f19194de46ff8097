"""How commands end, and what they print where little can be printed."""

import errno
import os
import subprocess
import sys

import pytest

from maxfdl.__main__ import COMMANDS
from maxfdl.errors import UserError
from maxfdl.terminal import session
from tests.commands import ROOT
from tests.test_imports import ENTRY_POINTS


def run(*args: str, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    """Runs `python -m maxfdl`, or a command of it, which imports no JAX here."""
    return subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
        stdout=stdout,
        stderr=stderr,
    )


@pytest.fixture
def nobody():
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_alone_it_lists_the_commands():
    done = run("maxfdl")
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    for name, what in COMMANDS.items():
        assert f"  {name:<10} {what}" in lines
    assert COMMANDS.keys() == {n.removesuffix(".__main__") for n in ENTRY_POINTS}
    assert max(map(len, lines)) <= 88


def test_a_command_by_name_is_its_module():
    by_name, by_module = run("maxfdl", "diff", "--help"), run("maxfdl.diff", "--help")
    assert (by_name.returncode, by_name.stdout) == (0, by_module.stdout)
    assert b"Compares two graphs" in by_name.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("lanch", "--x"),
            "no command 'lanch'. Did you mean 'launch' or 'bench'? There are: launch,"
            " show, diff, aot, bench, generate, convert, checkpoint, plot, quantize.",
        ),
        (("--x",), "the command comes first, as in: maxfdl launch --x"),
    ],
)
def test_no_command_of_that_name(args, message):
    done = run("maxfdl", *args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == f"error: {message}\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [["maxfdl"], ["maxfdl.show", "--help"]], ids=str)
def test_without_a_reader_it_ends_quietly(nobody, args, unbuffered):
    done = run(*args, stdout=nobody, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, b"")


def test_without_a_reader_of_its_errors_it_ends_quietly(nobody):
    done = run("maxfdl", "lanch", stderr=nobody)
    assert (done.returncode, done.stdout) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_one_line(unbuffered):
    with open("/dev/full", "w") as full:
        done = run("maxfdl", stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 2
    assert done.stderr == b"error: No space left on device.\n"


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["encoding", "locale"],
)
def test_what_the_encoding_lacks_is_escaped(locale):
    done = run("maxfdl", "läunch", **locale)
    assert done.returncode == 2
    assert b"no command 'l\\" in done.stderr and b"Traceback" not in done.stderr
    assert done.stderr.isascii()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no."), 2, "error: no.\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left"), 2, "error: No space left.\n"),
    ],
)
def test_what_is_no_bug_ends_without_a_traceback(capsys, error, code, text):
    with pytest.raises(SystemExit) as end, session():
        raise error
    assert (end.value.code, capsys.readouterr().err) == (code, text)


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("a bug"),
        BrokenPipeError("of another pipe"),
        OSError(errno.ENOSPC, "No space left", "of a file"),
    ],
)
def test_a_bug_stays_one(bug):
    with pytest.raises(type(bug)), session():
        raise bug
