"""Checks in processes that crash, hang or run out of time."""

import dataclasses
import os
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
