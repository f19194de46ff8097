"""FP8 products against their formulas in NumPy, number by number."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from maxfdl.ops.dot import Dot
from maxfdl.ops.fp8_recipes import Fp8Current
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot


def rounded(x, axis=None):
    """`x` through e4m3 with a scale for each slice over `axis`, in float64."""
    amax = np.max(np.abs(x), axis=axis, keepdims=axis is not None)
    scale = np.float32(np.where(amax > 0, amax / 448, 1.0))
    return np.float64((np.float32(x) / scale).astype(ml_dtypes.float8_e4m3fn)) * scale


def by_formula(x_TI, kernel_IO, dy_TO, granularity):
    """Product and gradients of 2-D arrays, as the recipe `current` defines them."""
    if granularity == "tensor":
        x, kernel = rounded(x_TI), rounded(kernel_IO)
        dy = rounded(dy_TO)
        return x @ kernel, dy @ kernel.T, x.T @ dy
    x, kernel = rounded(x_TI, 1), rounded(kernel_IO, 0)
    x_scale = np.max(np.abs(x_TI), 1, keepdims=True) / 448
    kernel_scale = np.max(np.abs(kernel_IO), 0, keepdims=True) / 448
    for_x = rounded(dy_TO * kernel_scale, 1)
    for_kernel = rounded(dy_TO * x_scale, 0)
    return x @ kernel, for_x @ (kernel / kernel_scale).T, (x / x_scale).T @ for_kernel


def random(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def with_gradients(product, x, kernel, dy):
    y, pull = jax.vjp(product, jnp.asarray(x), jnp.asarray(kernel))
    return y, *pull(jnp.asarray(dy, y.dtype))


def assert_close(ours, expected):
    for got, wanted in zip(ours, expected, strict=True):
        tolerance = 1e-5 * np.max(np.abs(wanted))
        np.testing.assert_allclose(
            got, wanted.reshape(got.shape), rtol=0, atol=tolerance
        )


each_granularity = pytest.mark.parametrize("granularity", ["tensor", "channel"])
# x, kernel, how many dims are contracted
SHAPES = {
    "one dim": ((2, 5, 6), (6, 7), 1),
    "to heads": ((2, 5, 6), (6, 3, 4), 1),
    "from heads": ((2, 5, 3, 4), (3, 4, 6), 2),
    "to one number": ((2, 5, 6), (6,), 1),
}
SLOW = ("one dim", "to heads", "to one number")


@each_granularity
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in SHAPES],
)
def test_product_and_gradients_are_those_of_the_formula(name, granularity):
    x_shape, kernel_shape, contract = SHAPES[name]
    x, kernel = random(*x_shape), random(*kernel_shape, seed=1)
    inputs = int(np.prod(kernel_shape[:contract]))
    y_shape = (*x_shape[:-contract], *kernel_shape[contract:])
    dy = random(*y_shape, seed=2) * 1e-4
    dot = QuantizedDot(Fp8Current(granularity=granularity))

    def product(x, kernel):
        return dot(x, kernel, {}, contract=contract)[0]

    flat = x.reshape(-1, inputs), kernel.reshape(inputs, -1), dy.reshape(10, -1)
    expected = by_formula(*flat, granularity)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)
    # For who forms the gradient of y itself, as a tiled loss does.
    for outputs_first in (False, True):
        dx, dkernel = dot.backward(
            *map(jnp.asarray, (x, kernel, dy)),
            contract=contract,
            outputs_first=outputs_first,
        )
        as_kernel = expected[2].reshape(kernel_shape)
        if outputs_first:
            dims = range(kernel.ndim)
            as_kernel = as_kernel.transpose(*dims[contract:], *dims[:contract])
        assert dkernel.shape == as_kernel.shape
        assert_close((dx, dkernel), (expected[1], as_kernel))


@each_granularity
def test_an_einsum_is_the_product_with_the_dims_in_another_order(granularity):
    q, kernel = random(2, 1, 3, 4), random(5, 3, 4, seed=1)
    dot = QuantizedDot(Fp8Current(granularity=granularity))
    equation = "bthn,lhn->bthl"
    y, _ = dot(jnp.asarray(q), jnp.asarray(kernel), {}, equation=equation)
    axes = (3, 2) if granularity == "channel" else (None, None)
    expected = np.einsum(equation, rounded(q, axes[0]), rounded(kernel, axes[1]))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


SIZES = {
    "some empty": [0, 7, 0, 8, 0],
    "more than a block": [70, 1, 129],
    "equal": None,
}
WAYS = [
    pytest.param(implementation, granularity, marks=marks)
    for implementation, granularity, marks in (
        ("ragged", "channel", ()),
        ("blocks", "tensor", ()),
        ("ragged", "tensor", pytest.mark.slow),
        ("blocks", "channel", pytest.mark.slow),
    )
]


def groups_by_formula(x, kernel, dy, sizes, granularity):
    """Each group by itself; with a scale per tensor, rows share one."""
    parts = [np.split(a, np.cumsum(sizes)[:-1]) for a in (x, dy)]
    if granularity == "channel":
        each = zip(parts[0], kernel, parts[1], strict=True)
        y, dx, dkernel = zip(
            *[channels_or_nothing(*each_group) for each_group in each], strict=True
        )
        return np.concatenate(y), np.concatenate(dx), np.stack(dkernel)
    parts = [np.split(rounded(a), np.cumsum(sizes)[:-1]) for a in (x, dy)]
    kernel = [rounded(each) for each in kernel]
    each = list(zip(parts[0], kernel, parts[1], strict=True))
    y = np.concatenate([x @ k for x, k, _ in each])
    dx = np.concatenate([dy @ k.T for _, k, dy in each])
    return y, dx, np.stack([x.T @ dy for x, _, dy in each])


def channels_or_nothing(x, kernel, dy):
    if len(x):
        return by_formula(x, kernel, dy, "channel")
    return x @ kernel, dy @ kernel.T, x.T @ dy


@pytest.mark.parametrize(("implementation", "granularity"), WAYS)
@pytest.mark.parametrize("name", SIZES)
def test_products_of_groups_are_those_of_the_formula(name, implementation, granularity):
    sizes = SIZES[name] or [3] * 4
    rows = sum(sizes)
    x, kernel = random(rows, 6), random(len(sizes), 6, 4, seed=1)
    kernel *= np.float32(2.0) ** np.arange(len(sizes))[:, None, None]
    dy = random(rows, 4, seed=2) * 1e-4
    dot = QuantizedGroupedDot(Fp8Current(granularity=granularity), implementation)
    given = None if SIZES[name] is None else jnp.asarray(sizes)

    def product(x, kernel):
        return dot(x, kernel, {}, given)[0]

    expected = groups_by_formula(x, kernel, dy, sizes, granularity)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


@each_granularity
def test_it_computes_in_bfloat16_what_it_does_in_float32_and_returns_bfloat16(
    granularity,
):
    dot = QuantizedDot(Fp8Current(granularity=granularity))
    x = jnp.asarray(random(4, 6), jnp.bfloat16)
    kernel = jnp.asarray(random(6, 5, seed=1), jnp.bfloat16)
    product = jax.jit(lambda x, kernel, **kwargs: dot(x, kernel, {}, **kwargs)[0])
    y = product(x, kernel)
    assert y.dtype == jnp.bfloat16
    wide = product(x.astype(jnp.float32), kernel.astype(jnp.float32))
    np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))
    dx, dkernel = jax.grad(lambda *a: jnp.sum(product(*a) ** 2), (0, 1))(x, kernel)
    assert dx.dtype == dkernel.dtype == jnp.bfloat16


def bytes_kept(dot, x, kernel, *sizes):
    """Bytes of the arrays that the backward pass is given."""

    def pull(x, kernel, *sizes):
        product = lambda x, kernel: dot(x, kernel, {}, *sizes)[0]  # noqa: E731
        return jax.vjp(product, x, kernel)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull, x, kernel, *sizes))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


def test_a_byte_per_number_is_kept_for_the_backward_pass():
    x, kernel = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((32, 16), jnp.bfloat16)
    numbers = x.size + kernel.size
    assert bytes_kept(Dot(), x, kernel) == 2 * numbers
    for granularity, scales in (("tensor", 2), ("channel", 64 + 16)):
        kept = bytes_kept(QuantizedDot(Fp8Current(granularity=granularity)), x, kernel)
        assert kept <= numbers + 4 * scales


def test_products_of_groups_keep_a_byte_per_number_and_the_group_of_each_row():
    x, kernel = jnp.ones((64, 32), jnp.bfloat16), jnp.ones((2, 32, 16), jnp.bfloat16)
    sizes, numbers = jnp.array([40, 24]), x.size + kernel.size
    assert bytes_kept(GroupedDot(), x, kernel, sizes) >= 2 * numbers
    kept = bytes_kept(QuantizedGroupedDot(Fp8Current()), x, kernel, sizes)
    assert kept <= numbers + 4 * (64 + 2) + 4 * 3


def test_a_tensor_that_overflowed_gives_no_numbers():
    dot = functools.partial(
        QuantizedDot(Fp8Current()), kernel=jnp.ones((2, 2)), state={}
    )
    y, _ = dot(jnp.array([[1.0, jnp.inf], [1.0, 2.0]]))
    assert np.all(np.isnan(y[0])) and np.all(np.isfinite(y[1]))
    y, _ = dot(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(y, np.zeros((1, 2)))
