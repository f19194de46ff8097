"""Weights that are not finite are refused, wherever they are read or written."""

import ml_dtypes
import numpy as np
import pytest

from maxfdl.errors import UserError
from maxfdl.tensors.finite import Inspection

TYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]


def looked_at(values, dtype=None, allow_non_finite=False):
    inspection = Inspection(allow_non_finite)
    inspection.look("x", values, dtype or values.dtype)
    return inspection.remarks


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 999_999])
def test_one_bad_value_is_found_anywhere(dtype, bad, place):
    values = np.ones(1_000_000, dtype)
    values[place] = bad
    with pytest.raises(UserError, match=f"x holds -?(nan|inf) at .{place}., and 1 of"):
        looked_at(values)


@pytest.mark.parametrize("dtype", TYPES)
def test_finite_values_pass_up_to_the_largest_and_the_smallest(dtype):
    limits = ml_dtypes.finfo(dtype)
    assert looked_at(np.array([limits.max, -limits.max, 0.0], dtype)) == []
    assert looked_at(np.array([limits.smallest_subnormal, -0.0], dtype)) == []
    for shape in ((), (0, 3), (2, 0)):
        assert looked_at(np.ones(shape, dtype)) == []


def test_the_sentence_says_where_and_how_many():
    values = np.zeros((2, 3), np.float32)
    values[1, 2] = np.nan
    values[1, 0] = -np.inf
    with pytest.raises(UserError) as error:
        looked_at(values)
    assert str(error.value).startswith(
        "x holds -inf at [1, 0], and 2 of its 6 values are not finite; "
    )
    assert "allow_non_finite" in str(error.value)


def test_a_value_too_large_for_its_new_type_is_refused():
    with pytest.raises(UserError, match="x holds 65520.0, too large for float16"):
        looked_at(np.array([1.0, -65520.0], np.float32), np.float16)
    assert looked_at(np.array([65519.0], np.float32), np.float16) == []
    with pytest.raises(UserError, match="too large for float32"):
        looked_at(np.array([1e300]), np.float32)


def test_what_is_let_through_is_told_once():
    inspection = Inspection(allow_non_finite=True)
    for name in ("a", "b", "c"):
        inspection.look(name, np.array([np.nan, 1.0], np.float32), np.float32)
    inspection.look("d", np.ones(2, np.float32), np.float32)
    (remark,) = inspection.remarks
    assert remark.startswith("a holds nan at [0], and 1 of its 2 values")
    assert "and 2 more tensors; used as it is" in remark
