"""Block scaling against a NumPy version of the formula, with blocks of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.fp8_block import Fp8Block
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from tests.ops.test_quantized_dot import assert_close, random, rounded, with_gradients

SIZE = 4


def in_blocks(x, rows, columns):
    """`x` through FP8, each block of so many rows and columns by itself."""
    out = np.zeros(x.shape)
    for i in range(0, x.shape[0], rows):
        for j in range(0, x.shape[1], columns):
            block = x[i : i + rows, j : j + columns]
            out[i : i + rows, j : j + columns] = rounded(block)
    return out


def by_formula(x_TI, kernel_IO, dy_TO, size=SIZE):
    x, kernel = in_blocks(x_TI, 1, size), in_blocks(kernel_IO, size, size)
    y, dx = x @ kernel, in_blocks(dy_TO, 1, size) @ kernel.T
    anew = in_blocks(np.float32(x), size, 1)
    return y, dx, anew.T @ in_blocks(dy_TO, size, 1)


# x, kernel, how many dims are contracted
SHAPES = {
    "whole blocks": ((4, 8), (8, 12), 1),
    "a shorter last block": ((3, 6), (6, 9), 1),
    "to heads": ((2, 5, 6), (6, 3, 2), 1),
    "from heads": ((2, 5, 3, 2), (3, 2, 7), 2),
    "one block": ((2, 3), (3, 2), 1),
    "to one number": ((2, 5, 6), (6,), 1),
}
SLOW = ("whole blocks", "one block", "to heads", "to one number")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SHAPES],
)
def test_product_and_gradients_are_those_of_the_formula(name):
    x_shape, kernel_shape, contract = SHAPES[name]
    x, kernel = random(*x_shape), random(*kernel_shape, seed=1)
    x *= np.float32(10.0) ** np.arange(x.shape[-1])
    inputs = int(np.prod(kernel_shape[:contract]))
    dy = random(*x_shape[:-contract], *kernel_shape[contract:], seed=2) * 1e-4

    def product(x, kernel):
        return QuantizedDot(Fp8Block(size=SIZE))(x, kernel, {}, contract=contract)[0]

    rows = int(np.prod(x_shape[:-contract]))
    flat = x.reshape(rows, -1), kernel.reshape(inputs, -1), dy.reshape(rows, -1)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), by_formula(*flat))


def test_an_einsum_is_a_product_for_each_of_its_batch_dims():
    q, kernel = random(2, 1, 3, 6), random(5, 3, 6, seed=1)
    dot = QuantizedDot(Fp8Block(size=SIZE))
    y, _ = dot(jnp.asarray(q), jnp.asarray(kernel), {}, equation="bthn,lhn->bthl")
    for head in range(3):
        here = q[:, 0, head], kernel[:, head].T
        expected, _, _ = by_formula(*here, np.zeros((2, 5)))
        np.testing.assert_allclose(y[:, 0, head], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "implementation", [pytest.param("ragged", marks=pytest.mark.slow), "blocks"]
)
@pytest.mark.parametrize("sizes", [[0, 7, 0, 8, 0], [3, 3, 3, 3], None], ids=str)
def test_blocks_of_rows_end_with_their_group(sizes, implementation):
    given = None if sizes is None else jnp.asarray(sizes)
    sizes = sizes or [5, 5]
    x, kernel = random(sum(sizes), 6), random(len(sizes), 6, 9, seed=1)
    dy = random(sum(sizes), 9, seed=2) * 1e-4
    dot = QuantizedGroupedDot(Fp8Block(size=SIZE), implementation)

    def product(x, kernel):
        return dot(x, kernel, {}, given)[0]

    cut = np.cumsum(sizes)[:-1]
    groups = zip(np.split(x, cut), kernel, np.split(dy, cut), strict=True)
    y, dx, dkernel = zip(*(by_formula(*group) for group in groups), strict=True)
    expected = np.concatenate(y), np.concatenate(dx), np.stack(dkernel)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


def test_the_block_of_the_paper_has_128_numbers_and_gradients_in_e4m3():
    assert (
        Fp8Block().size == 128 and Fp8Block().backward == Fp8Block().forward == "e4m3"
    )
    x, kernel = random(2, 200), random(200, 130, seed=1)
    y, _ = QuantizedDot(Fp8Block())(jnp.asarray(x), jnp.asarray(kernel), {})
    expected, _, _ = by_formula(x, kernel, np.zeros((2, 130)), size=128)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-4)
