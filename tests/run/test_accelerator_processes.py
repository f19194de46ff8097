"""Checks in processes that crash, hang or run out of time."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time

import pytest

from maxfdl.run.accelerator.check import Bench
from maxfdl.run.accelerator.processes import in_children, in_this_process
from tests.run.fake_checks import (
    ABORTING,
    AGAIN,
    ALONE,
    EXITING,
    FINE,
    HANGING,
    PROBE,
    RAISING,
    UNKNOWN_FLAG,
)


def outcomes(runner, checks, bench=None):
    bench = bench or Bench(None, "cpu")
    found = []
    for outcome in runner(checks, bench):
        bench.earlier[outcome.name] = outcome
        found.append((outcome.name.removeprefix("fake/"), outcome.status, outcome.text))
    return found


def test_a_check_that_dies_or_hangs_costs_none_of_the_others():
    checks = [FINE, ABORTING, RAISING, EXITING, HANGING, PROBE, AGAIN]
    before = "fake/fine, fake/aborting, fake/raising, fake/exiting, fake/hanging"
    assert outcomes(in_children, checks) == [
        ("fine", "passed", "after nothing"),
        (
            "aborting",
            "failed",
            "its process was killed by SIGABRT; the last line there: F1127 Unknown flag"
            " in XLA_FLAGS",
        ),
        ("raising", "failed", "ValueError: no such kernel"),
        (
            "exiting",
            "failed",
            "its process ended with code 3; the last line there: none",
        ),
        ("hanging", "failed", "was not done in 0.5 s"),
        (
            "probe",
            "refused",
            "its process was killed by SIGABRT; the last line there: F1127 Unknown flag"
            " in XLA_FLAGS",
        ),
        ("again", "passed", f"after {before}, fake/probe"),
    ]


def test_a_check_with_an_environment_has_a_process_of_its_own():
    found = list(in_children([FINE, AGAIN, ALONE], Bench(None, "cpu")))
    first, second, alone = (outcome.figures["pid"] for outcome in found)
    assert len({first, second, alone, os.getpid()}) == 3 and first == second
    assert found[2].text == "seen" and "MAXFDL_FAKE" not in os.environ


def test_after_a_failure_a_new_process_goes_on():
    found = list(in_children([FINE, RAISING, AGAIN], Bench(None, "cpu")))
    first, _, last = (outcome.figures.get("pid") for outcome in found)
    assert first != last


def test_a_flag_that_xla_does_not_know_is_refused_with_its_words():
    ((_, status, text),) = outcomes(in_children, [UNKNOWN_FLAG])
    assert status == "refused"
    assert text.endswith("Unknown flag in XLA_FLAGS: --xla_no_such_flag=1")


@pytest.mark.parametrize("runner", [in_children, in_this_process])
def test_what_would_begin_too_late_is_skipped(runner):
    bench = Bench(None, "cpu", last_starts={"fake": time.monotonic() - 1})
    late = "the time for it was up before it began"
    assert outcomes(runner, [FINE, ALONE], bench) == [
        ("fine", "skipped", late),
        ("alone", "skipped", late),
    ]


def test_what_runs_when_all_time_is_up_is_ended():
    started = time.monotonic()
    bench = Bench(None, "cpu", end=started + 0.7)
    ((_, status, text),) = outcomes(
        in_children, [dataclasses.replace(HANGING, seconds=600)], bench
    )
    assert (status, text) == ("skipped", "all the time was up while it ran")
    assert time.monotonic() - started < 30


def test_the_process_that_waits_leaves_the_device_to_the_others():
    """An array that a module makes when it is imported would take most of a GPU."""
    code = (
        "from jax._src import xla_bridge\n"
        "from maxfdl.run.accelerator import suite\n"
        "assert all(section.checks('gpu') for section in suite.SECTIONS)\n"
        "print(xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
