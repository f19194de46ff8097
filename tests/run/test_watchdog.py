"""A step that hangs is noticed; whatever else takes long is not."""

import time

import pytest

from maxfdl.run import watchdog
from maxfdl.run.watchdog import Watchdog

LIMIT = 0.2


@pytest.fixture
def left(monkeypatch):
    """The exit codes of processes that would have ended."""
    codes = []
    monkeypatch.setattr(watchdog, "leave_now", codes.append)
    return codes


def wait_until(true):
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(LIMIT / 10)


def test_a_step_that_hangs_shows_its_stacks_and_ends_the_process(left, capfd):
    dog = Watchdog(LIMIT)
    with dog.step(7):
        wait_until(lambda: left)
    dog.close()
    assert left[0] == 1
    error = capfd.readouterr().err
    assert error.startswith("step 7 has taken more than 0.2 s; if it takes as long")
    assert error.index("in wait_until") < error.index("error: step 7 has taken more")


def test_what_comes_between_steps_may_take_long(left, capfd):
    dog = Watchdog(LIMIT)
    for step in range(4):
        with dog.step(step):
            time.sleep(LIMIT / 20)
        time.sleep(LIMIT * 2.5 if step == 1 else 0)
    dog.close()
    assert left == [] and capfd.readouterr().err == ""


def test_time_in_which_the_process_was_stopped_does_not_count(left, monkeypatch):
    dog = Watchdog(LIMIT)
    real, jump = time.monotonic, 0.0
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + jump)
    with dog.step(1):
        jump = 1000.0
        time.sleep(LIMIT / 4)
    dog.close()
    assert left == []


def test_no_limit_watches_nothing(left):
    with Watchdog(None).step(1):
        time.sleep(LIMIT / 10)
    assert left == []
