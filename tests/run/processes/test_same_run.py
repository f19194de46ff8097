"""Tests of processes that compare what they are about to run."""

import threading

import pytest

from maxfdl.errors import UserError
from maxfdl.run.processes.same_run import check, software

WHAT = {"graph": "a = 1", "--run_dir": "/runs/x", "--stop_at": None}


def compare(start, *what):
    """Lets processes compare; returns what each is refused with, or None."""
    processes = [start(index, len(what)) for index in range(len(what))]
    refusals = [None] * len(what)

    def run(index):
        try:
            check(processes[index].peers, what[index], lambda *graphs: list(graphs))
        except UserError as error:
            refusals[index] = str(error)
            processes[index].peers.end(str(error), 2)
            processes[index].die()

    threads = [
        threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(what))
    ]
    for thread in threads:
        thread.start()
    for thread, process in zip(threads, processes, strict=True):
        while thread.is_alive() and process.runs_on():
            thread.join(0.01)
    return refusals, [process.said for process in processes]


def test_processes_that_are_about_to_do_the_same_go_on(start):
    assert compare(start, WHAT, WHAT, WHAT) == ([None] * 3, [[]] * 3)


def test_all_that_differs_is_said_by_all(start):
    other = WHAT | {"graph": "a = 2", "--stop_at": 5, "JAX": "1.0"}
    refusals, said = compare(start, WHAT, other)
    assert refusals[1] == (
        "process 0 and process 1 are not one run; start all with the same command, on"
        " machines that see the same files:\n"
        "  the graph, from process 0 to process 1:\n"
        "    a = 1\n"
        "    a = 2\n"
        "  --stop_at: none in process 0, 5 in process 1\n"
        "  JAX: none in process 0, 1.0 in process 1"
    )
    assert said == [[f"error: {refusals[1]}"], []]


@pytest.mark.parametrize("name", ["--run_dir", "graph"])
def test_one_process_that_differs_is_enough(start, name):
    refusals, said = compare(start, WHAT, WHAT, WHAT | {name: "other"})
    assert "process 0 and process 2 are not one run" in refusals[2]
    assert refusals[:2] == [None, None] and said[0] == said[1] != []


def test_the_software_is_told_from_other_software():
    found = software()
    assert len(found["the code of maxfdl"]) == 12
    assert found["jax_enable_x64"] == "False" and "JAX" in found
    assert software() == found
