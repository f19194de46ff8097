"""Which document a token belongs to."""

import jax.numpy as jnp
import numpy as np

from maxfdl.ops.documents import document_numbers, is_token
from maxfdl.ops.mask import NOWHERE, Places


def numbers(positions, ids=None):
    ids = None if ids is None else jnp.int32([ids])
    return document_numbers(Places(jnp.int32([positions]), ids))[0].tolist()


def test_a_document_begins_at_position_0():
    assert numbers([0, 1, 2, 0, 0, 1]) == [1, 1, 1, 2, 3, 3]


def test_what_goes_on_from_an_earlier_call_is_number_0():
    assert numbers([7, 8, 0, 1]) == [0, 0, 1, 1]
    assert numbers([7, 8, 0, 1], [3, 3, 4, 4]) == [0, 0, 1, 1]


def test_a_document_begins_where_the_segment_changes():
    assert numbers([0, 1, 2, 3], [1, 1, 2, 2]) == [1, 1, 2, 2]


def test_a_document_may_follow_another_of_the_same_segment():
    assert numbers([0, 1, 0, 1], [1, 1, 1, 1]) == [1, 1, 2, 2]


def test_padding_is_no_token_and_begins_nothing():
    positions = [4, 5, NOWHERE, NOWHERE]
    assert numbers(positions) == [0, 0, 0, 0]
    token = is_token(Places(jnp.int32([positions]), None))
    np.testing.assert_array_equal(token, [[True, True, False, False]])
