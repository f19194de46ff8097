"""Tests of how a command ends the other processes of its run."""

import queue
import threading
import time

import pytest
from absl import flags

from maxfdl.errors import UserError
from maxfdl.run.processes import ending, place
from tests.run.conftest import SOON


class Left(BaseException):
    """Stands for the end of this process."""


@pytest.fixture
def codes() -> queue.Queue[int]:
    """The codes that this process exits with."""
    return queue.Queue()


@pytest.fixture
def other(start, codes, monkeypatch):
    """Process 0 of a run whose process 1 is this one."""
    place.define_flags(flags.FLAGS)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", f"localhost:{start.port}")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    monkeypatch.setattr(ending, "_NEWS_SECONDS", 0.2)
    monkeypatch.setattr(ending, "_peers", None)
    monkeypatch.setattr(ending, "_has_finished", False)

    def leave(code):
        codes.put(code)
        if threading.current_thread() is threading.main_thread():
            raise Left

    monkeypatch.setattr(ending, "leave_now", leave)
    return start(0)


def end_by(error: BaseException) -> None:
    """Ends this process."""
    with pytest.raises(Left), ending.together(["launch.py"]), ending.failing_once():
        raise error


def refused(why: UserError) -> SystemExit:
    refusal = SystemExit(2)
    refusal.__cause__ = why
    return refusal


def test_a_command_that_is_refused_ends_the_others_with_its_sentence(other, codes):
    end_by(refused(UserError("unknown flag --x.")))
    assert codes.get_nowait() == 2
    assert other.exit_code() == 2
    assert other.said == ["error: process 1 of 2 was refused: unknown flag --x."]


def test_a_bug_in_one_process_is_a_page_there_and_a_sentence_elsewhere(
    other, codes, capsys
):
    end_by(ZeroDivisionError("by zero\nreally"))
    assert codes.get_nowait() == 1
    assert "ZeroDivisionError: by zero" in capsys.readouterr().err
    assert other.exit_code() == 1
    assert other.said == ["error: process 1 of 2 failed: ZeroDivisionError: by zero"]


@pytest.mark.parametrize("code, there", [(0, 1), (130, 130)])
def test_a_process_that_ends_early_ends_the_others(other, codes, code, there):
    end_by(SystemExit(code))
    assert codes.get_nowait() == code
    assert other.exit_code() == there
    assert other.said[0].endswith(f"ended before the others, with exit code {code}")


def refused_by_a_failure() -> UserError:
    why = UserError("the step cannot be saved")
    why.__cause__ = OSError("the others do not answer")
    return why


@pytest.mark.parametrize(
    "error, is_late",
    [
        (ZeroDivisionError(), False),
        (refused_by_a_failure(), False),
        (UserError("the same"), True),
    ],
)
def test_the_failure_of_another_process_is_told_instead_of_what_follows_from_it(
    other, codes, capsys, monkeypatch, error, is_late
):
    has_ended = threading.Event()

    def fail():
        with ending.together(["launch.py"]), ending.failing_once():
            ending.current().meet("start")
            if is_late:
                has_ended.wait(SOON)
            raise error

    threading.Thread(target=fail, daemon=True).start()
    other.peers.meet("start")
    other.peers.end("process 0 of 2 failed: first", 1)
    assert codes.get(timeout=SOON) == 1
    monkeypatch.setattr(ending, "_NEWS_SECONDS", 3600)  # the thread waits for its end
    has_ended.set()
    time.sleep(0.5)
    assert capsys.readouterr().err == "error: process 0 of 2 failed: first\n"
    assert codes.empty() and other.runs_on()


def test_a_process_that_comes_to_its_end_waits_for_the_others(other, codes):
    with ending.together(["launch.py"]):
        waiting = threading.Thread(target=ending.finish)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        other.peers.meet("finished")
        waiting.join(SOON)
        assert not waiting.is_alive()
        other.peers.finish()
    assert codes.empty() and other.runs_on() and not other.said


def test_without_other_processes_nothing_is_joined(monkeypatch):
    with ending.together(["launch.py"]), ending.failing_once():
        assert ending.current() is None
    with pytest.raises(ZeroDivisionError), ending.together(["launch.py"]):
        raise ZeroDivisionError
