"""Tests of processes that meet, and of how they end together.

Each `Peers` stands for a process; what it would print and exit with is kept.
"""

import itertools
import queue
import socket
import threading
import time

import pytest

from maxfdl.errors import UserError
from maxfdl.run.processes import heartbeat
from maxfdl.run.processes.hub import Hub
from maxfdl.run.processes.place import Place
from tests.run.conftest import SOON, Process


def together(*functions):
    """Calls functions at the same time; returns what they return."""
    results = [None] * len(functions)

    def call(index):
        results[index] = functions[index]()

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    return results


def join(*processes: Process) -> None:
    together(*(lambda each=each: each.peers.meet("start") for each in processes))


def test_all_get_what_process_0_brought(start):
    late, middle = start(2, 3), start(1, 3)
    first = start(0, 3)
    values = together(
        lambda: late.peers.meet("x", 2),
        lambda: middle.peers.meet("x", {"of": 1}),
        lambda: first.peers.meet("x", {"of": [0, None, "ä\n"]}),
    )
    assert values == [{"of": [0, None, "ä\n"]}] * 3
    assert together(
        *(lambda each=p: each.peers.meet("y") for p in (first, middle, late))
    )


def test_nobody_goes_on_before_all_have_come(start):
    first, second = start(0), start(1)
    join(first, second)
    waiting = threading.Thread(target=first.peers.meet, args=("x",))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    second.peers.meet("x")
    waiting.join(SOON)
    assert not waiting.is_alive()


def test_a_long_graph_goes_through(start):
    first, second = start(0), start(1)
    text = "x" * 3_000_000
    both = together(lambda: first.peers.meet("x", text), lambda: second.peers.meet("x"))
    assert both == [text, text]


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_process_that_ends_the_run_tells_all_others_why(start, who):
    processes = [start(index, 3) for index in range(3)]
    join(*processes)
    ending = processes.pop(who)
    ending.peers.end("process x was refused: a\nb", 2)
    ending.die()
    for other in processes:
        assert other.exit_code() == 2
        assert other.said == ["error: process x was refused: a\nb"]
    assert ending.runs_on() and not ending.said


def test_a_process_that_comes_after_the_end_is_told_too(start):
    first = start(0)
    telling = threading.Thread(target=first.peers.end, args=("no such flag", 2))
    telling.start()
    second = start(1)
    assert (second.exit_code(), second.said) == (2, ["error: no such flag"])
    telling.join(SOON)
    assert not telling.is_alive()


def test_a_process_may_be_refused_before_process_0_is_there(start):
    second = start(1)
    telling = threading.Thread(target=second.peers.end, args=("no such flag", 2))
    telling.start()
    first = start(0)
    assert (first.exit_code(), first.said) == (2, ["error: no such flag"])
    telling.join(SOON)
    assert not telling.is_alive()


@pytest.mark.parametrize("victim", [1, 2])
def test_the_death_of_a_process_ends_all_others_with_its_name(start, victim):
    processes = [start(index, 3) for index in range(3)]
    join(*processes)
    processes.pop(victim).die()
    for other in processes:
        assert other.exit_code() == 1
        (sentence,) = other.said
        assert sentence.startswith(f"error: process {victim} of 3 (pid ")
        assert "has died: it was killed, ran out of memory, or its" in sentence


@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_that_does_not_answer_ends_all_with_its_name(start, victim):
    processes = [start(index, 3, heartbeat=2.0) for index in range(3)]
    join(*processes)
    processes[victim].peers.answers["ping"] = lambda _: None
    for process in processes:
        assert process.exit_code() == 1
        (sentence,) = process.said
        assert sentence.startswith(f"error: process {victim} of 3 (pid ")
        assert "has not answered for 2 s: it is stopped, hangs, or" in sentence


def test_a_process_0_that_is_silent_ends_the_others(start, monkeypatch):
    async def stopped(hub):
        pass

    monkeypatch.setattr(Hub, "_watch_over_all", stopped)
    first, second = start(0, heartbeat=0.5), start(1)
    assert (first.exit_code(), second.exit_code()) == (1, 1)
    assert second.said[0].startswith("error: process 0 of 2 (pid ")
    assert "has not answered for 0.5 s" in second.said[0]


def test_time_in_which_nobody_could_be_heard_is_no_silence(monkeypatch):
    clock = itertools.accumulate([0, *[1] * 5, 1000, *[1] * 9, 1, 1])
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: next(clock))
    silence = heartbeat.Silence(10)
    assert not any(silence.is_too_long() for _ in range(6))
    silence.broken()
    assert not any(silence.is_too_long() for _ in range(10))
    assert silence.is_too_long()


def serve(port: int, answer: bytes) -> None:
    """Takes one connection, answers, and closes it."""
    with socket.create_server(("localhost", port)) as server:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)


def other_server(port: int, answer: bytes) -> None:
    threading.Thread(target=serve, args=(port, answer), daemon=True).start()


def test_the_death_of_process_0_ends_the_others(start):
    other_server(
        start.port, b'{"kind": "welcome", "name": "pid 5 on host0", "heartbeat": 60}\n'
    )
    second = start(1)
    assert second.exit_code() == 1
    assert second.said[0].startswith("error: process 0 of 2 (pid 5 on host0) has died:")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"[]\n", b""])
def test_another_server_at_that_address_is_one_sentence(start, answer):
    other_server(start.port, answer)
    second = start(1)
    assert second.exit_code() == 2
    assert second.said == [
        f"error: what answers at localhost:{start.port} is not process 0 of a run; give"
        " all processes the --coordinator of process 0."
    ]


def test_nobody_at_that_address_is_one_sentence_after_the_stated_time(start):
    second = start(1, timeout=0.3)
    assert second.exit_code() == 2
    assert second.said == [
        f"error: process 1 waited 0.3 s for process 0 at localhost:{start.port}"
        " (Connection refused); start process 0 too, and give all processes its"
        " --coordinator."
    ]


def test_a_host_that_is_not_known_is_one_sentence():
    second = Process(Place("no-such-host.invalid", 9, 1, 2, timeout=0.1))
    assert second.exit_code() == 2
    assert "process 0 at no-such-host.invalid:9 (" in second.said[0]


def test_a_process_that_does_not_come_ends_the_others_after_the_stated_time(start):
    first, second = start(0, 4, timeout=1.0), start(2, 4)
    for process in (second, first):
        assert process.exit_code() == 2
        assert process.said == [
            "error: processes 1, 3 of 4 did not join process 0 at"
            f" localhost:{start.port} in 1 s; start all processes with the same"
            " command and each with its own --process_id."
        ]


def test_a_process_says_whom_it_waits_for(start, monkeypatch):
    monkeypatch.setattr("maxfdl.run.processes.peers.SAY_AFTER", 0.1)
    monkeypatch.setattr("maxfdl.run.processes.hub.SAY_AFTER", 0.1)
    second = start(1, 3)
    while not second.said:
        time.sleep(0.01)
    assert second.said == [
        f"waiting for process 0 at localhost:{start.port} (Connection refused)"
    ]
    first = start(0, 3)
    while not any("process 2 of 3" in line for line in first.said):
        time.sleep(0.01)
    assert first.said[-1] == f"waiting for process 2 of 3 at localhost:{start.port}"
    assert second.said[1:] == []


def test_another_number_of_processes_is_refused_by_all(start):
    first, second = start(0, 2), start(1, 3)
    for process in (second, first):
        assert process.exit_code() == 2
        assert process.said == [
            "error: process 1 has --num_processes=3, and process 0 has"
            " --num_processes=2; give all the same."
        ]


def test_two_processes_with_one_number_are_refused_by_all(start):
    first, second = start(0, 3), start(1, 3)
    while not second.peers.has_joined:
        time.sleep(0.01)
    for process in (start(1, 3), second, first):
        assert process.exit_code() == 2
        assert process.said[0].startswith("error: two processes have --process_id=1: ")


def test_a_run_that_is_complete_goes_on_when_one_more_process_comes(start):
    first, second = start(0), start(1)
    join(first, second)
    third = start(1)
    assert third.exit_code() == 2
    assert third.said[0].startswith("error: two processes have --process_id=1: pid ")
    join(first, second)
    assert first.runs_on() and second.runs_on()


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b'{"kind": "hello"']
)
def test_a_stranger_at_the_port_changes_nothing(start, noise):
    first = start(0)
    while not first.peers.has_joined:
        time.sleep(0.01)
    with socket.create_connection(("localhost", start.port)) as stranger:
        stranger.sendall(noise)
    join(first, start(1))
    assert first.runs_on()


def test_to_leave_in_good_order_is_no_death(start):
    first, second = start(0), start(1)
    join(first, second)
    together(first.peers.finish, second.peers.finish)
    assert first.runs_on() and second.runs_on() and not first.said + second.said


def test_a_port_in_use_is_one_sentence(start):
    with socket.create_server(("localhost", start.port)):
        with pytest.raises(UserError) as error:
            start(0)
    assert str(error.value) == (
        f"process 0 cannot wait for the others at localhost:{start.port} (Address"
        " already in use); give all processes another --coordinator, at a free port of"
        " the machine of process 0."
    )


def test_all_stop_after_the_step_that_the_furthest_is_at(start):
    processes = [start(index, 3) for index in range(3)]
    join(*processes)
    verdicts = queue.Queue()
    for process, step in zip(processes, (7, 9, 8), strict=True):
        process.peers.answers |= {
            "where": lambda _, step=step: {"kind": "at", "step": step},
            "stop_after": lambda message: verdicts.put(
                (message["step"], message["signal"])
            ),
        }
    for process in processes[:2]:  # the second request changes nothing
        process.peers.send(
            {"kind": "stop", "signal": "SIGTERM", "text": "", "code": 143}
        )
    assert [verdicts.get(timeout=SOON) for _ in range(3)] == [(10, "SIGTERM")] * 3
    assert verdicts.empty() and all(process.runs_on() for process in processes)


def test_all_end_at_once_if_one_has_not_begun(start):
    first, second = start(0), start(1)
    join(first, second)
    first.peers.answers["where"] = lambda _: {"kind": "at", "step": 4}
    stop = {"kind": "stop", "signal": "SIGINT", "text": "stopped", "code": 130}
    second.peers.send(stop)
    for process in (second, first):
        assert (process.exit_code(), process.said) == (130, ["stopped"])
