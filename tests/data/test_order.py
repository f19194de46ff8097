"""The order of documents."""

import numpy as np
import pytest

from maxfdl.data.order import EndlessOrder


def epochs(size, seed, count):
    order = EndlessOrder(np.arange(size), seed)
    return [[order(size * i + j) for j in range(size)] for i in range(count)]


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 1000, 4097])
def test_every_epoch_holds_every_index_once(size):
    for epoch in epochs(size, seed=7, count=3):
        assert sorted(epoch) == list(range(size))


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = [tuple(epoch) for seed in range(5) for epoch in epochs(20, seed, 5)]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("size", [5, 24])
def test_every_index_is_about_as_often_at_every_place(size):
    drawn = np.array(epochs(size, seed=0, count=4000))
    for place in range(size):
        share = np.bincount(drawn[:, place], minlength=size) / 4000
        assert abs(share * size - 1).max() < 0.3


def test_neighbours_are_torn_apart():
    (epoch,) = epochs(10_000, seed=0, count=1)
    assert np.mean(np.abs(np.diff(epoch)) < 100) < 0.04
    assert abs(np.corrcoef(epoch, range(10_000))[0, 1]) < 0.05


def test_without_a_seed_the_order_is_kept():
    order = EndlessOrder(np.array([4, 2, 9]))
    assert [order(number) for number in range(5)] == [4, 2, 9, 4, 2]


def test_the_order_of_a_seed_never_changes():
    """Runs that were saved resume in it."""
    assert epochs(8, seed=1, count=2) == [
        [1, 2, 7, 0, 3, 4, 5, 6],
        [0, 6, 7, 4, 3, 2, 5, 1],
    ]


def test_an_order_that_is_shifted_begins_later_in_every_epoch():
    order = EndlessOrder(np.array([4, 2, 9]), shift=1)
    assert [order(number) for number in range(9)] == [4, 2, 9, 2, 9, 4, 9, 4, 2]
