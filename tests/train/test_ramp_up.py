"""Batches that grow use every row once, and go on where they stopped."""

import numpy as np
import pytest

from maxfdl import graph
from maxfdl.errors import ConfigError
from maxfdl.mutations import batch_ramp_up, gradient_accumulation
from maxfdl.train.ramp_up import BatchRampUp, RampedBatches
from tests import tiny


class Numbers:
    """Batches of eight rows, each with its number."""

    def __init__(self):
        self.next_row = 0

    def __next__(self):
        self.next_row += 8
        return {"rows": np.arange(self.next_row - 8, self.next_row)}

    def get_state(self):
        return self.next_row

    def set_state(self, state):
        self.next_row = state


RAMP = BatchRampUp(start=2, steps=16)


def batches():
    return RampedBatches(Numbers(), lambda step: 8 // RAMP.size(step, 8))


def test_sizes_double_in_equal_shares():
    sizes = [RAMP.size(step, 8) for step in range(1, 19)]
    assert sizes == [2] * 8 + [4] * 8 + [8] * 2


def test_every_row_comes_once():
    ramped = batches()
    taken = [next(ramped)["rows"] for _ in range(18)]
    assert [len(rows) for rows in taken] == [2] * 8 + [4] * 8 + [8] * 2
    assert sorted(np.concatenate(taken)) == list(range(8 * (2 + 4 + 2)))


@pytest.mark.parametrize("stop", [1, 3, 8, 9, 16, 17])
def test_it_goes_on_where_it_was_saved(stop):
    first, second = batches(), batches()
    for _ in range(stop):
        next(first)
    second.set_state(first.get_state())
    for _ in range(12):
        left, right = next(first), next(second)
        np.testing.assert_array_equal(left["rows"], right["rows"])


@pytest.mark.parametrize(
    ("start", "steps", "problem"),
    [
        (0, 8, "must be at least 1 sequence"),
        (3, 8, "must reach batch_size .8. by doubling"),
        (8, 8, "must reach batch_size .8. by doubling"),
        (2, 12, "must be a multiple of 8"),
    ],
)
def test_what_does_not_lead_to_the_batch_is_refused(start, steps, problem):
    config = batch_ramp_up(tiny.experiment(), start=start or 1, steps=steps)
    config.ramp_up.start = start
    with pytest.raises(ConfigError, match=problem):
        graph.validate(config)


def test_microbatches_must_divide_the_first_batch():
    config = gradient_accumulation(tiny.experiment(), steps=4)
    config = batch_ramp_up(config, start=2, steps=8)
    with pytest.raises(ConfigError, match="ramp_up.start .2. must be a multiple"):
        graph.validate(config)


def test_tokens_are_counted_by_the_sizes():
    experiment = graph.build(batch_ramp_up(tiny.experiment(), start=2, steps=8))
    counted = [
        experiment.tokens_before(step) // tiny.LENGTH for step in (1, 2, 5, 9, 11)
    ]
    assert counted == [0, 2, 8, 24, 40]
