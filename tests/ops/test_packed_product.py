"""Products that read codes where they lie are those with the unpacked kernel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.codec import Codec, PackedKernel
from maxfdl.ops.dot import Dot
from maxfdl.ops.packed_product import is_read_packed, rows_by_packed
from tests.ops.test_codec import CODECS


def packed(codec, *shape):
    kernel = np.float32(np.random.default_rng(0).normal(size=shape))
    parts = jax.tree.map(jnp.asarray, codec.encode(kernel))
    return PackedKernel(**parts, codec=codec, inputs=shape[:1], outputs=shape[1:])


def rows(count, width):
    return jnp.float32(np.random.default_rng(1).normal(size=(count, width)))


# One row as it is decoded, several as they are in a batch; inputs that a trip divides,
# and inputs of which the last trip has fewer.
@pytest.mark.parametrize(
    "name, count, inputs",
    [
        pytest.param(name, *shape, marks=() if i % 4 == 0 else pytest.mark.slow)
        for i, (name, shape) in enumerate(
            itertools.product(CODECS, [(1, 67), (5, 48), (5, 67)])
        )
    ],
)
def test_it_is_the_product_with_the_unpacked_kernel(name, count, inputs):
    kernel, x = packed(CODECS[name], inputs, 7), rows(count, inputs)
    expected = x @ kernel.unpacked()
    np.testing.assert_allclose(rows_by_packed(x, kernel), expected, rtol=0, atol=1e-5)
    y, state = Dot().of_packed(x, kernel, {})
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert state == {}


def test_groups_of_an_odd_number_of_half_bytes_are_unpacked_first():
    assert is_read_packed(1, Codec("int4", inputs=6))
    assert not is_read_packed(1, Codec("int4", inputs=5))
    assert is_read_packed(1, Codec("int8", inputs=5))


@pytest.mark.parametrize("count", [1, 8])
def test_the_kernel_is_never_formed(count):
    kernel, x = packed(CODECS["int8"], 4096, 512), rows(count, 4096)
    compiled = jax.jit(rows_by_packed).lower(x, kernel).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4 * 4096 * 512 / 3
