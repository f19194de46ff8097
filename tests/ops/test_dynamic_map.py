"""Dynamic 8-bit numbers against the table and the codes of bitsandbytes.

`goldens/dynamic_map.safetensors` says how it was made.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from maxfdl.ops.dynamic_map import SIGNED, UNSIGNED
from tests.golden import FOLDER

GOLDEN = load_file(FOLDER / "dynamic_map.safetensors")
EACH = pytest.mark.parametrize(
    ("kind", "numbers"), [("signed", SIGNED), ("unsigned", UNSIGNED)]
)


@EACH
def test_the_numbers_are_those_of_bitsandbytes(kind, numbers):
    table, codes = GOLDEN[f"table.{kind}"], jnp.arange(256, dtype=jnp.uint8)
    # Its table was rounded to float32 more than once.
    np.testing.assert_allclose(numbers.decoded(codes), table, rtol=3e-7)
    np.testing.assert_array_equal(numbers.encoded(jnp.asarray(table)), codes)


@EACH
def test_codes_are_those_of_bitsandbytes(kind, numbers):
    """But for positive numbers without a sign, which never become 0."""
    x, expected = (GOLDEN[f"{part}.{kind}"] for part in ("x", "codes"))
    if kind == "unsigned":
        assert np.sum((x > 0) & (expected == 0)) > 10  # that it was put to the test
        expected = np.where((x > 0) & (expected == 0), 1, expected)
    np.testing.assert_array_equal(numbers.encoded(jnp.asarray(x)), expected)
