"""Tokens further on in the same document."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.later import has_later, later, places_with_later
from maxfdl.ops.mask import Places

IDS = np.int32([[1, 1, 1, 2, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3]])
POSITIONS = np.int32([[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_token_has_another_if_it_is_of_its_document(steps):
    expected = np.zeros(IDS.shape, bool)
    for row, column in np.ndindex(*IDS.shape):
        there = column + steps
        if there < IDS.shape[1] and IDS[row, column]:
            expected[row, column] = IDS[row, there] == IDS[row, column]
    places = Places(jnp.asarray(POSITIONS), jnp.asarray(IDS))
    np.testing.assert_array_equal(has_later(places, steps), expected)
    known = places_with_later(places, steps)
    np.testing.assert_array_equal(known.segment_ids, np.where(expected, IDS, 0))


def test_a_row_without_segments_is_one_document():
    known = has_later(Places(jnp.asarray(POSITIONS[1:]), None), 2)
    assert known.tolist() == [[True] * 5 + [False] * 2]


def test_later_tokens_come_from_further_on():
    assert later(jnp.asarray(POSITIONS), 2)[1, :5].tolist() == [2, 3, 4, 5, 6]
