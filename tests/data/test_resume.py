"""A resumed stream goes on with exactly the batch that would have come next."""

import json

import grain
import numpy as np
import pytest

from maxfdl.data import Concatenate, FirstFit, Synthetic
from maxfdl.data.places import joined
from maxfdl.errors import UserError
from maxfdl.train.ramp_up import RampedBatches

PACKINGS = [Concatenate(), FirstFit(open_rows=3)]


def synthetic(**changed):
    settings = {"batch_size": 4, "sequence_length": 16, "seed": 3, "vocab_size": 50}
    return Synthetic(**settings | changed)


@pytest.fixture(params=["concatenate", "first_fit", "shared_lanes", "synthetic"])
def make(request, make_data, make_source, corpus):
    """Makes the same data anew at every call."""
    share = {"process_index": 1, "process_count": 4}
    few = make_source(*corpus.texts[:4])
    return {
        "concatenate": make_data,
        "first_fit": lambda: make_data(packing=FirstFit(open_rows=3)),
        "shared_lanes": lambda: make_data(few, packing=FirstFit(open_rows=3), **share),
        "synthetic": synthetic,
    }[request.param]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 40])
def test_a_resumed_stream_goes_on_with_the_next_batch(make, steps):
    iterator = make().train()
    for _ in range(steps):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator) for _ in range(8)]
    resumed = make().train()
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    np.testing.assert_equal([next(resumed) for _ in range(8)], expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_grain_finds_nothing_wrong_with_the_state(make_data, packing):
    data = make_data(packing=packing, prefetch=0)

    class FirstBatches(grain.IterDataset):
        def __iter__(self):
            return _Limited(data.train())

    grain.experimental.assert_equal_output_after_checkpoint(FirstBatches())


class _Limited(grain.DatasetIterator):
    """The first 12 batches of a stream without end, whose state counts them."""

    def __init__(self, batches):
        super().__init__(batches)
        self._count = 0

    def __next__(self):
        if self._count == 12:
            raise StopIteration
        self._count += 1
        return next(self._parent)

    def get_state(self):
        return {"parent": self._parent.get_state(), "count": self._count}

    def set_state(self, state):
        self._parent.set_state(state["parent"])
        self._count = state["count"]


def test_orbax_saves_and_restores_a_stream(make, tmp_path):
    from orbax.checkpoint import v1 as ocp

    iterator = make().train()
    for _ in range(5):
        next(iterator)
    with ocp.training.Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save_checkpointables(1, {"data": iterator})
        expected = [next(iterator) for _ in range(3)]
        resumed = make().train()
        checkpointer.load_checkpointables(1, {"data": resumed})
    np.testing.assert_equal([next(resumed) for _ in range(3)], expected)


def test_refuses_the_state_of_another_split(make_data):
    state = make_data().train().get_state()
    other = make_data(eval_fraction=0).train()
    with pytest.raises(UserError) as error:
        other.set_state(state)
    assert str(error.value) == (
        "TextData.source has 41 documents to train on, but had 39 when this run was"
        " saved; resume with the same files and eval_fraction, or start a new run."
    )


@pytest.fixture(params=["concatenate", "first_fit", "shared_lanes", "synthetic"])
def make_share(request, make_data, make_source, corpus):
    """Makes the share of one process of several, by its index and their number."""
    few = make_source(*corpus.texts[:4])
    make = {
        "concatenate": make_data,
        "first_fit": lambda **share: make_data(packing=FirstFit(open_rows=3), **share),
        "shared_lanes": lambda **share: make_data(few, **share),
        "synthetic": lambda **share: synthetic(batch_size=8, **share),
    }[request.param]
    return lambda index, count: make(process_index=index, process_count=count)


def ramped(batches):
    """Halves of whole batches for six steps: one is half used up when a run stops."""
    return RampedBatches(batches, lambda step: 2 if step < 7 else 1)


@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (2, 4), (4, 2), (4, 1)])
def test_another_number_of_processes_goes_on_with_the_next_batch(
    make_share, before, after
):
    def started(count):
        return [ramped(make_share(index, count).train()) for index in range(count)]

    def next_batches(iterators):
        parts = [next(each) for each in iterators]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    first = started(before)
    for _ in range(3):
        next_batches(first)
    states = json.loads(json.dumps([each.get_state() for each in first]))
    second = started(after)
    for each in second:
        each.set_state(joined(states))
    for _ in range(6):
        np.testing.assert_equal(next_batches(second), next_batches(first))
    # And back again, from what those save.
    third = started(before)
    for each in third:
        each.set_state(joined([each.get_state() for each in second]))
    np.testing.assert_equal(next_batches(third), next_batches(second))


def test_processes_whose_rows_are_no_neighbours_share_the_batch_and_go_on(make_share):
    def started():
        return make_share(0, 1).train(), [
            make_share(shares, 4).train() for shares in ((0, 3), (1, 2))
        ]

    def check_next_batch(whole, apart):
        expected, parts = next(whole), [next(each) for each in apart]
        for name, rows in expected.items():
            found = np.concatenate([part[name] for part in parts])
            np.testing.assert_equal(found, rows[[0, 1, 6, 7, 2, 3, 4, 5]])

    whole, apart = started()
    for _ in range(3):
        check_next_batch(whole, apart)
    states = json.loads(json.dumps([each.get_state() for each in apart]))
    whole, apart = started()
    for each in (whole, *apart):
        each.set_state(joined(states))
    check_next_batch(whole, apart)


def test_bad_documents_of_all_processes_are_known_to_each_that_goes_on(
    make_data, make_source
):
    texts = ["one two", None, "three four", "five", None, "six", "7" * 99, "8" * 99]
    source = make_source(*texts)
    settings = {"eval_fraction": 0, "shuffle": False, "batch_size": 2, "skip_bad": 2}
    settings["sequence_length"] = 8
    halves = [
        make_data(source, process_index=i, process_count=2, **settings).train()
        for i in range(2)
    ]
    for each in halves:
        for _ in range(3):
            next(each)
    assert [each.bad_documents for each in halves] == [[4], [1]]
    place = joined([each.get_state() for each in halves])
    whole = make_data(source, **settings).train()
    whole.set_state(place)
    assert whole.bad_documents == [4, 1]
    # One process met 4 and not 1; it is enough that its documents are what they were.
    mended = make_source(*texts[:4], "new", *texts[5:])
    make_data(mended, **settings).train().set_state(place)
    with pytest.raises(UserError, match=r"TextData.source has changed: \[document 0\]"):
        other = make_source("ONE", *texts[1:])
        make_data(other, **settings).train().set_state(place)


def test_refuses_the_state_of_other_lanes(make_data):
    state = make_data(batch_size=2).train().get_state()
    with pytest.raises(UserError) as error:
        make_data(batch_size=2, interleave=1).train().set_state(state)
    assert str(error.value) == (
        "TextData state is of 2 lanes of 4 tracks, and here are 2 of 1; resume with the"
        " batch_size and data.interleave that the run was saved with."
    )
