"""Tests of processes that compare their data."""

import copy
import threading

import pytest

from maxfdl.errors import UserError
from maxfdl.run import same_data
from maxfdl.run.same_data import check_same_data
from tests.run.conftest import SOON

MADE_OF = {
    "settings": {"packing": "Concatenate()", "seed": 3},
    "mended": [],
    "source": {
        "kind": "Files(field='text')",
        "parts": [["a.txt", 1234, "5f"], ["b.txt", 7, "60"]],
    },
}


class Batches:
    def __init__(self, made_of):
        self._state = {"batches": {"batches": {}, "made_of": made_of}, "step": 0}

    def get_state(self):
        return self._state


@pytest.fixture
def compare(start, monkeypatch):
    """Compares what is given with `MADE_OF`, which process 0 has."""
    first, second = start(0), start(1)
    monkeypatch.setattr(same_data, "current", lambda: second.peers)

    def compare(made_of):
        other = threading.Thread(target=first.peers.meet, args=("data", MADE_OF))
        other.start()
        check_same_data(Batches(made_of))
        other.join(SOON)

    return compare


def changed(path, value):
    made_of = copy.deepcopy(MADE_OF)
    *parents, last = path
    node = made_of
    for key in parents:
        node = node[key]
    node[last] = value
    return made_of


@pytest.mark.parametrize(
    "made_of", [MADE_OF, changed(("source", "parts", 0, 0), "/mnt/a.txt")]
)
def test_the_same_text_may_have_other_names(compare, made_of):
    compare(made_of)


@pytest.mark.parametrize(
    "made_of, difference",
    [
        (
            changed(("source", "kind"), "KingJames()"),
            "the source (Files(field='text') there, KingJames() here)",
        ),
        (
            changed(("source", "parts", 0), ["a.txt", 1235, "6f"]),
            "[a.txt] (1,234 bytes there, 1,235 here)",
        ),
        (
            changed(("source", "parts"), MADE_OF["source"]["parts"][:1]),
            "[b.txt], which is only there",
        ),
        (
            changed(("source", "parts"), [*MADE_OF["source"]["parts"], ["c", 1, "0"]]),
            "[c], which is only here",
        ),
        (changed(("settings", "seed"), 4), "seed (3 there, 4 here)"),
    ],
)
def test_other_data_is_refused_with_the_first_difference(compare, made_of, difference):
    with pytest.raises(UserError) as error:
        compare(made_of)
    assert str(error.value) == (
        "process 1 reads other data than process 0, which differ in"
        f" {difference}; give all processes the same files."
    )


def test_a_process_that_is_alone_compares_nothing():
    check_same_data(Batches({}))
