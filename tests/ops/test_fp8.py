"""FP8 numbers and scales against values that can be read off the formats."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maxfdl.ops.contraction import greatest_magnitude
from maxfdl.ops.fp8 import Formats, quantise, rolled, scale_of

MOST = {
    (False, "e4m3"): (ml_dtypes.float8_e4m3fn, 448.0),
    (False, "e5m2"): (ml_dtypes.float8_e5m2, 57344.0),
    (True, "e4m3"): (ml_dtypes.float8_e4m3fnuz, 240.0),
    (True, "e5m2"): (ml_dtypes.float8_e5m2fnuz, 57344.0),
}


@pytest.mark.parametrize(("fnuz", "name"), MOST)
def test_a_format_is_that_of_the_hardware_and_its_greatest_number_scales(fnuz, name):
    dtype, most = MOST[fnuz, name]
    formats = Formats(forward=name, backward=name, fnuz=fnuz)
    assert formats.forward_dtype == formats.backward_dtype == dtype
    x = jnp.array([[1.0, -7.0], [0.5, 3.5]])
    scale = scale_of(greatest_magnitude(x), dtype)
    np.testing.assert_allclose(scale, 7.0 / most, rtol=2e-7)
    # -7 is the greatest number of the format, 3.5 half of it, and both come back.
    back = np.float32(quantise(x, scale, dtype)) * scale
    np.testing.assert_allclose(back[:, 1], [-7.0, 3.5], rtol=2e-7)


def test_a_margin_leaves_powers_of_two_free():
    assert scale_of(jnp.float32(448.0), jnp.float8_e4m3fn, 3) == 8.0


@pytest.mark.parametrize("dtype", [each for each, _ in MOST.values()])
@pytest.mark.parametrize(
    "x", [0.0, 1e-45, 1e-38, 3e38, np.inf, -np.inf, np.nan], ids=str
)
def test_whatever_a_tensor_holds_its_scale_is_finite_and_no_zero(x, dtype):
    for margin in (0, 8):
        values = jnp.array([x, 0.0], jnp.float32)
        scale = jax.jit(scale_of, static_argnums=(1, 2))(
            greatest_magnitude(values), dtype, margin
        )
        assert 0 < scale < np.inf and 0 < 1 / scale < np.inf
        back = np.float32(quantise(values, scale, dtype))
        assert np.isfinite(back[0]) == np.isfinite(x) and back[1] == 0


def test_infinities_and_nan_among_numbers_do_not_change_the_scale_of_these():
    x = jnp.array([2.0, jnp.inf, jnp.nan, -4.0])
    assert greatest_magnitude(x) == 4.0


def test_numbers_beyond_the_scale_become_the_greatest():
    x = jnp.array([1000.0, -1e30, 448.0])
    back = np.float32(quantise(x, jnp.float32(1.0), jnp.float8_e4m3fn))
    np.testing.assert_array_equal(back, [448.0, -448.0, 448.0])


def test_a_history_takes_the_newest_and_drops_the_oldest():
    history = jnp.zeros(3)
    for amax in (1.0, 2.0, 3.0, 4.0):
        history = rolled(history, jnp.float32(amax))
    assert sorted(history.tolist()) == [2.0, 3.0, 4.0] and history[0] == 4.0
