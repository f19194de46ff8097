"""A resumed stream goes on with exactly the batch that would have come next."""

import json

import grain
import numpy as np
import pytest

from maxfdl.data import Concatenate, FirstFit, Synthetic
from maxfdl.errors import UserError

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


def test_refuses_the_state_of_another_number_of_processes(make_data):
    state = make_data().train().get_state()
    half = make_data(process_count=2).train()
    with pytest.raises(UserError) as error:
        half.set_state(state)
    assert str(error.value) == (
        "TextData state holds the places of 8 of 8 lanes, and this process runs 4 of 8;"
        " resume with the batch_size, data.interleave and number of processes that the"
        " run was saved with."
    )
