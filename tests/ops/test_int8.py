"""Products in int8 against their formula in NumPy, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.int8 import Int8
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from tests.ops.test_quantized_dot import (
    SIZES,
    assert_close,
    bytes_kept,
    random,
    with_gradients,
)


def integers(x, axis):
    """The integers that `x` becomes, and a scale for each slice over `axis`."""
    amax = np.max(np.abs(x), axis=axis, keepdims=True, initial=0)
    scale = np.where(amax > 0, amax / np.float32(127), np.float32(1))
    return np.int64(np.rint(x / scale)), scale


def by_formula(x_TI, kernel_IO, dy_TO, backward):
    """Product and gradients of 2-D arrays."""
    (x, x_scale), (kernel, kernel_scale) = integers(x_TI, 1), integers(kernel_IO, 0)
    y = (x @ kernel) * x_scale * kernel_scale
    for_x, for_kernel = dy_TO * kernel_scale, dy_TO * x_scale
    if not backward:
        return y, for_x @ kernel.T, x.T @ for_kernel
    for_x, rows = integers(for_x, 1)
    for_kernel, columns = integers(for_kernel, 0)
    return y, (for_x @ kernel.T) * rows, (x.T @ for_kernel) * columns


each_pass = pytest.mark.parametrize("backward", [False, True])
# x, kernel, how many dims are contracted
SHAPES = [((2, 5, 6), (6, 3, 4), 1), ((2, 5, 3, 4), (3, 4, 6), 2)]


@each_pass
@pytest.mark.parametrize(("x_shape", "kernel_shape", "contract"), SHAPES)
def test_product_and_gradients_are_those_of_the_formula(
    x_shape, kernel_shape, contract, backward
):
    x, kernel = random(*x_shape), random(*kernel_shape, seed=1)
    x[0, 0] = 0
    y_shape = (*x_shape[:-contract], *kernel_shape[contract:])
    dy = random(*y_shape, seed=2) * np.float32(1e-4)
    dot = QuantizedDot(Int8(backward))

    def product(x, kernel):
        return dot(x, kernel, {}, contract=contract)[0]

    inputs = int(np.prod(kernel_shape[:contract]))
    flat = x.reshape(10, inputs), kernel.reshape(inputs, -1), dy.reshape(10, -1)
    expected = by_formula(*flat, backward)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


@pytest.mark.parametrize(
    ("implementation", "backward", "name"),
    [
        ("blocks", True, "some empty"),
        ("ragged", True, "equal"),
        ("ragged", False, "some empty"),
        pytest.param("ragged", True, "more than a block", marks=pytest.mark.slow),
        pytest.param("blocks", False, "more than a block", marks=pytest.mark.slow),
    ],
)
def test_products_of_groups_are_those_of_the_formula(implementation, backward, name):
    given = SIZES[name]
    sizes = given or [3] * 4
    x, kernel = random(sum(sizes), 6), random(len(sizes), 6, 4, seed=1)
    dy = random(sum(sizes), 4, seed=2) * np.float32(1e-4)
    dot = QuantizedGroupedDot(Int8(backward), implementation)

    def product(x, kernel):
        return dot(x, kernel, {}, None if given is None else jnp.asarray(given))[0]

    cut = np.cumsum(sizes)[:-1]
    groups = zip(np.split(x, cut), kernel, np.split(dy, cut), strict=True)
    y, dx, dkernel = zip(
        *(by_formula(*group, backward) for group in groups), strict=True
    )
    expected = np.concatenate(y), np.concatenate(dx), np.stack(dkernel)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


@each_pass
def test_operands_are_int8_and_sums_int32_and_the_rest_is_in_the_type_of_x(backward):
    dot = QuantizedDot(Int8(backward))
    x, kernel = jnp.ones((4, 6), jnp.bfloat16), jnp.ones((6, 5), jnp.bfloat16)
    step = jax.grad(lambda x, k: jnp.sum(dot(x, k, {})[0] ** 2), (0, 1))
    text = jax.jit(step).lower(x, kernel).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 3
    for i, line in enumerate(products):
        is_int8 = backward or i == 0
        assert ("xi8>" in line and "xi32>" in line) == is_int8, line
        assert ("xbf16>" in line) == (not is_int8), line


def test_a_byte_per_number_is_kept_for_the_backward_pass():
    x, kernel = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 16), jnp.bfloat16)
    for backward in (False, True):
        kept = bytes_kept(QuantizedDot(Int8(backward)), x, kernel)
        assert kept <= x.size + kernel.size + 4 * (64 + 16)


int8 = jax.jit(lambda x, kernel: QuantizedDot(Int8())(x, kernel, {})[0])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_seen_where_a_plain_product_shows_it(value):
    x, kernel = random(3, 4), random(4, 5, seed=1)
    x[1, 2] = kernel[0, 3] = value
    x[2], kernel[:, 4] = 0, 0
    y = int8(x, kernel)
    seen = np.zeros((3, 5), bool)
    seen[1], seen[:, 3] = True, True
    np.testing.assert_array_equal(np.isnan(y), seen)
    assert y[2, 0] == y[0, 4] == 0


def test_sums_that_int32_does_not_hold_are_exact():
    rows = 2**17 + 2**16 + 3
    x, kernel = jnp.ones((1, rows)), jnp.ones((rows, 1))
    y, dx, dkernel = with_gradients(
        jax.jit(lambda x, kernel: QuantizedDot(Int8(True))(x, kernel, {})[0]),
        x.T,
        jnp.ones((1, 1)),
        np.ones((rows, 1)),
    )
    assert dkernel.shape == (1, 1) and np.all(dx == 1)
    np.testing.assert_allclose(dkernel, rows, rtol=1e-6)
    y, _ = QuantizedDot(Int8())(x, kernel, {})
    np.testing.assert_allclose(y, [[rows]], rtol=1e-6)


@pytest.mark.slow
def test_sums_over_many_rows_of_groups_are_exact():
    sizes = np.array([3, 0, 2**17 + 3000, 1])
    x, dy = np.ones((sizes.sum(), 1)), np.ones((sizes.sum(), 1))
    dot = QuantizedGroupedDot(Int8(True), "ragged")

    def product(x, kernel):
        return dot(x, kernel, {}, jnp.asarray(sizes))[0]

    _, _, dkernel = with_gradients(jax.jit(product), x, np.ones((4, 1, 1)), dy)
    np.testing.assert_allclose(dkernel[:, 0, 0], sizes, rtol=1e-6)
