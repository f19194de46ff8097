"""Synthetic data."""

import itertools

import numpy as np
import pytest

from maxfdl.data import Synthetic
from maxfdl.errors import UserError


def synthetic(**changed):
    settings = {"batch_size": 4, "sequence_length": 16, "seed": 3, "vocab_size": 50}
    return Synthetic(**settings | changed)


def take(data, count=3):
    return list(itertools.islice(data.train(), count))


def test_the_same_seed_gives_the_same_batches_and_another_does_not():
    np.testing.assert_equal(take(synthetic()), take(synthetic()))
    assert (
        take(synthetic())[0]["tokens"] != take(synthetic(seed=4))[0]["tokens"]
    ).any()


def test_no_two_batches_are_the_same():
    first, second, _ = take(synthetic())
    assert (first["tokens"] != second["tokens"]).any()


def test_the_shares_of_all_processes_are_the_global_batch():
    shares = [take(synthetic(process_index=i, process_count=2)) for i in range(2)]
    for whole, *parts in zip(take(synthetic()), *shares, strict=True):
        for name, array in whole.items():
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(array, joined)


def test_tokens_fill_the_vocabulary_and_rows_are_divided_as_asked():
    batch = next(synthetic(sequence_length=512, documents_per_row=5).train())
    assert set(batch["tokens"].ravel()) == set(range(50))
    assert (batch["segment_ids"].max(axis=1) == 5).all()
    assert (batch["weights"].sum(axis=1) == 512 - 5).all()


def test_evaluation_depends_on_no_seed_and_is_not_in_training():
    held_out = synthetic().evaluation(2)
    np.testing.assert_equal(held_out, synthetic(seed=9).evaluation(2))
    assert (held_out[0]["tokens"] != take(synthetic(seed=0))[0]["tokens"]).any()


def test_refuses_more_documents_than_tokens():
    with pytest.raises(UserError) as error:
        synthetic(documents_per_row=17)
    assert str(error.value) == (
        "Synthetic.documents_per_row [17] must be from 1 to sequence_length [16]."
    )
