"""Batches that are read ahead, for a failure to be known before its turn."""

import pytest

from maxfdl.errors import UserError
from maxfdl.run.look_ahead import LookAhead


class Batches:
    """0, 1, 2, ...; the one after the last is bad."""

    skip_bad = 7

    def __init__(self, last):
        self.last, self.given = last, 0

    def __next__(self):
        if self.given == self.last:
            raise UserError("bad")
        self.given += 1
        return {"number": self.given - 1}

    def get_state(self):
        return {"given": self.given}

    @property
    def bad_documents(self):
        return list(range(self.given))


def test_the_place_is_that_of_the_batch_given_last():
    ahead = LookAhead(Batches(100), 50, pytest.fail)
    assert ahead.get_state() == {"given": 0} and ahead.bad_documents == []
    for number in range(50):
        assert next(ahead) == {"number": number}
        assert ahead.get_state() == {"given": number + 1}
        assert ahead.bad_documents == list(range(number + 1))
    assert ahead.skip_bad == 7


def test_nothing_is_read_that_nobody_will_ask_for():
    batches = Batches(3)
    ahead = LookAhead(batches, 3, pytest.fail)
    assert [next(ahead)["number"] for _ in range(3)] == [0, 1, 2]
    assert batches.given == 3


def test_a_failure_is_told_steps_before_its_turn():
    told = []
    ahead = LookAhead(Batches(10), 50, told.append)
    left = []
    for number in range(10):
        assert next(ahead) == {"number": number}
        left += [10 - number - 1] if told else []
    assert left == [4, 3, 2, 1, 0]  # more than three
    for _ in range(2):
        with pytest.raises(UserError, match="^bad$") as error:
            next(ahead)
        assert told == [error.value]
    assert ahead.get_state() == {"given": 10}
