"""Tests of stopping a run with signals."""

import hashlib
import os
import queue
import signal
import threading
import time

import pytest

from maxfdl.run.signals import StopRequest
from tests.run.conftest import SOON

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture(autouse=True)
def not_ignored():
    """Under nohup a process, and so a test, begins with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def codes() -> queue.Queue[int]:
    """The codes that the process would have ended with at once."""
    return queue.Queue()


@pytest.fixture
def stop(codes):
    """Signals go to this request, of a process that trains alone."""
    handlers = [signal.getsignal(getattr(signal, name)) for name in CODES]
    with StopRequest(leave=codes.put) as request:
        yield request
    assert [signal.getsignal(getattr(signal, name)) for name in CODES] == handlers


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def wait_for(condition) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize("name", CODES)
def test_before_the_first_step_a_signal_ends_the_process(stop, codes, capsys, name):
    with stop.training():
        assert not stop.reached(0)
        send(name)
        assert codes.get(timeout=SOON) == CODES[name]
    assert capsys.readouterr().err == f"stopped by {name} with nothing to save\n"


@pytest.mark.parametrize("name", CODES)
def test_while_it_trains_a_signal_asks_to_save_and_stop(stop, codes, name):
    with stop.training():
        assert not stop.reached(4)
        stop.began()
        send(name)
        wait_for(lambda: stop.requested)
        assert stop.exit_code == 0
        assert stop.reached(5)
    assert (stop.requested, stop.exit_code) == (name, CODES[name])
    assert codes.empty()


def test_when_all_is_saved_a_signal_ends_the_process(stop, codes):
    with stop.training():
        stop.began()
    send("SIGTERM")
    assert codes.get(timeout=SOON) == 143


def test_a_run_that_finishes_anyway_has_not_been_stopped(stop, codes):
    with stop.training():
        assert not stop.reached(0)
        stop.began()
        send("SIGTERM")
        wait_for(lambda: stop.requested)
    assert stop.exit_code == 0 and codes.empty()


@pytest.mark.parametrize("pause", [0, 0.005])
@pytest.mark.parametrize("first", CODES)
def test_a_second_ctrl_c_ends_the_process(stop, codes, capsys, first, pause):
    with stop.training():
        stop.began()
        send(first)
        time.sleep(pause)
        send("SIGINT")
        assert codes.get(timeout=SOON) == 130
    assert capsys.readouterr().err == (
        "stopped by SIGINT; what was trained since the last save is lost\n"
    )


@pytest.mark.parametrize("first", CODES)
def test_a_second_sigterm_changes_nothing(stop, codes, first):
    with stop.training():
        stop.began()
        for name in (first, "SIGTERM", "SIGHUP", "SIGTERM"):
            send(name)
        wait_for(lambda: stop.requested)
        time.sleep(0.1)
        assert stop.reached(1) and stop.requested == first
    assert codes.empty()


def test_signals_count_while_the_main_thread_runs_no_python(stop, codes):
    stop.began()
    seen, is_busy = [], True

    def interrupt():
        send("SIGINT")
        wait_for(lambda: stop.requested)
        send("SIGINT")
        seen.append((codes.get(timeout=SOON), is_busy))

    thread = threading.Timer(0.05, interrupt)
    thread.start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # half a second
    is_busy = False
    thread.join()
    assert seen == [(130, True)]


@pytest.fixture
def two(start, codes):
    """Stop requests of two processes; signals go to the first."""
    first, second = start(0), start(1)
    wait_for(lambda: first.peers.has_joined and second.peers.has_joined)
    there = StopRequest(second.peers)
    with StopRequest(first.peers, leave=codes.put) as here:
        yield here, there


def test_two_processes_stop_after_the_same_step(two, codes):
    here, there = two
    for request, step in ((here, 3), (there, 5)):
        assert not request.reached(step)
        request.began()
    send("SIGTERM")
    wait_for(lambda: here.requested and there.requested)
    for request, step in ((here, 4), (there, 5)):
        assert not request.reached(step)
    for request in two:
        assert request.reached(6)
        assert (request.requested, request.exit_code) == ("SIGTERM", 143)
    assert codes.empty()


def test_a_failure_of_one_process_stops_all_after_the_same_step(two, codes):
    here, there = two
    error = ValueError("line 1701")
    there.after_failure(error)  # before the first step it asks for nothing
    for request, step in ((here, 3), (there, 4)):
        request.began()
        assert not request.reached(step)
    there.after_failure(error)
    wait_for(lambda: here.requested and there.requested)
    for request in two:
        assert not request.reached(4) and request.reached(5)
        assert request.requested == "a failure of process 1"
        assert request.exit_code == 1
    assert (here.failure, there.failure) == (None, error)
    assert codes.empty()


def test_a_process_waits_for_the_step_that_all_agree_on(two):
    here, there = two
    here.began()
    peers = there._peers
    answer, may_answer = peers.answers["where"], threading.Event()

    def answer_late(message):
        may_answer.wait(SOON)
        return answer(message)

    peers.answers["where"] = answer_late
    there.reached(8)
    there.began()
    here.reached(1)
    send("SIGINT")
    wait_for(lambda: here._is_held)
    waiting = threading.Thread(target=here.reached, args=(2,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    may_answer.set()
    waiting.join(SOON)
    assert not waiting.is_alive() and there.reached(9) and there.exit_code == 130


def test_of_two_processes_neither_may_be_before_its_first_step(two, start, codes):
    here, there = two
    here.began()
    send("SIGTERM")
    for process in start.processes:
        assert process.exit_code() == 143
        assert process.said == [
            "process 0 of 2 was stopped by SIGTERM with nothing to save"
        ]


def test_a_second_ctrl_c_ends_both_processes(two, start, codes):
    for request in two:
        request.began()
    send("SIGTERM")
    send("SIGINT")
    assert codes.get(timeout=SOON) == 130
    assert start.processes[1].exit_code() == 130
    assert start.processes[1].said == [
        "process 0 of 2 was stopped by SIGINT; what was trained since the last save is"
        " lost"
    ]


def test_nohup_stays_in_force(codes):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(leave=codes.put):
            send("SIGHUP")
            time.sleep(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert codes.empty()


def test_in_another_thread_it_does_nothing():
    before = signal.getsignal(signal.SIGTERM)

    def work():
        with StopRequest() as request:
            seen.append((request.requested, signal.getsignal(signal.SIGTERM)))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
