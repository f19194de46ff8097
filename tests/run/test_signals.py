"""Tests of stopping between two steps."""

import signal
import subprocess
import sys
import threading

import pytest

from maxfdl.run.signals import StopRequest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_becomes_a_flag(name):
    with StopRequest() as stop:
        assert stop.requested is None
        signal.raise_signal(getattr(signal, name))
        assert stop.requested == name


def test_one_process_stops_after_the_step_under_way():
    with StopRequest() as stop:
        assert not stop.reached(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.reached(2)


@pytest.fixture
def as_in_a_terminal():
    """Lets Ctrl-C interrupt, which a shell turns off in what it runs beside itself."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_changes_nothing():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == "SIGTERM"


def test_the_old_handlers_come_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
        raise RuntimeError
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(stop.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    assert signal.getsignal(signal.SIGTERM) is before


LOOP = """
import time
from maxfdl.run.signals import StopRequest

with StopRequest() as stop:
    print("started", flush=True)
    while not stop.requested:
        time.sleep(0.01)
print("saved after", stop.requested)
"""


def test_a_loop_in_a_process_of_its_own_ends_in_order():
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.stdout.read() == "saved after SIGTERM\n"
    assert process.returncode == 0
