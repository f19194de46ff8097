"""Products by group against a loop over rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.cost import count_flops
from maxfdl.ops.grouped_dot import GroupedDot

IMPLEMENTATIONS = ("ragged", "blocks")
SIZES = {
    "even": [5, 5, 5],
    "some empty": [0, 7, 0, 8, 0],
    "all in one": [0, 0, 15],
    "one by one": [1] * 15,
    "more than a block": [70, 1, 0, 129],
}


def random(case, dtype=np.float32):
    sizes, rng = jnp.asarray(SIZES[case], jnp.int32), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(sum(SIZES[case]), 6)), dtype)
    return x, jnp.asarray(rng.normal(size=(len(sizes), 6, 4)), dtype), sizes


def product(implementation, x, kernel, sizes):
    y, state = GroupedDot(implementation)(x, kernel, {}, sizes)
    assert state == {}
    return y


def loop(x, kernel, sizes):
    group = np.repeat(np.arange(len(sizes)), sizes)
    rows = zip(np.float64(x), group, strict=True)
    return np.stack([r @ np.float64(kernel)[g] for r, g in rows])


def slope(y):
    return np.cos(np.arange(y.size)).reshape(y.shape)


def total(implementation, x, kernel, sizes):
    y = product(implementation, x, kernel, sizes)
    return jnp.sum(y * slope(y))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", SIZES)
def test_multiplies_each_row_by_the_kernel_of_its_group(case, implementation):
    x, kernel, sizes = random(case)
    y = jax.jit(product, static_argnums=0)(implementation, x, kernel, sizes)
    np.testing.assert_allclose(y, loop(x, kernel, sizes), rtol=0, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", SIZES)
def test_gradients_are_those_of_the_loop(case, implementation):
    x, kernel, sizes = random(case)
    gradients = jax.jit(jax.grad(total, (1, 2)), static_argnums=0)
    dx, dkernel = gradients(implementation, x, kernel, sizes)
    group, dy = np.repeat(np.arange(len(sizes)), sizes), slope(np.ones((len(x), 4)))
    expected = np.zeros(kernel.shape)
    for row, g, d in zip(np.float64(x), group, dy, strict=True):
        expected[g] += np.outer(row, d)
    np.testing.assert_allclose(dkernel, expected, rtol=0, atol=2e-5)
    expected = [np.float64(kernel)[g] @ d for g, d in zip(group, dy, strict=True)]
    np.testing.assert_allclose(dx, expected, rtol=0, atol=2e-6)


def test_without_sizes_all_groups_have_equally_many_rows():
    x, kernel, sizes = random("even")
    y = product("auto", x, kernel, None)
    np.testing.assert_allclose(y, loop(x, kernel, sizes), rtol=0, atol=2e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_computes_in_the_type_of_x_and_sums_in_float32(implementation):
    x, kernel, sizes = random("more than a block", jnp.bfloat16)
    dot = functools.partial(product, implementation)
    y = dot(x, kernel.astype(jnp.float32), sizes)
    assert y.dtype == jnp.bfloat16
    expected = loop(x.astype(jnp.float32), kernel.astype(jnp.float32), sizes)
    np.testing.assert_allclose(np.float32(y), expected, rtol=2.0**-8, atol=2.0**-8)
    dkernel = jax.grad(lambda k: jnp.sum(dot(x, k, sizes).astype(jnp.float32)))(kernel)
    assert dkernel.dtype == jnp.bfloat16


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_counts_the_products_of_the_rows_and_no_others(implementation):
    x, kernel, sizes = random("some empty")
    dot = functools.partial(product, implementation)
    assert count_flops(dot, x, kernel, sizes) == 2 * 15 * 6 * 4
    even = lambda x, kernel: dot(x, kernel, None)  # noqa: E731
    assert count_flops(even, *random("even")[:2]) == 2 * 15 * 6 * 4


def test_works_under_vmap_and_scan():
    x, kernel, sizes = random("some empty")
    expected = loop(x, kernel, sizes)
    dot = functools.partial(product, "blocks")
    mapped = jax.vmap(dot, (0, None, None))(jnp.stack([x, 2 * x]), kernel, sizes)
    np.testing.assert_allclose(mapped, [expected, 2 * expected], rtol=0, atol=4e-6)
    body = lambda carry, x: (carry, dot(x, kernel, sizes))  # noqa: E731
    _, scanned = jax.lax.scan(body, None, x[None])
    np.testing.assert_allclose(scanned[0], expected, rtol=0, atol=2e-6)


def test_auto_is_what_its_platform_is_fast_at():
    assert GroupedDot().resolve("cpu") == "blocks"
    assert GroupedDot().resolve("gpu") == GroupedDot().resolve("tpu") == "ragged"
