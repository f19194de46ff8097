"""Dot against lax.dot_general and the gradients that JAX derives for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maxfdl.ops.dot import Dot

# x, kernel, how many dims are contracted
CASES = {
    "one dim": ((2, 5, 6), (6, 7), 1),
    "to heads": ((2, 5, 6), (6, 3, 4), 1),
    "from heads": ((2, 5, 3, 4), (3, 4, 6), 2),
    "no rows": ((6,), (6, 7), 1),
}


def dot(x, kernel, contract=1, **kwargs):
    y, state = Dot()(x, kernel, {}, contract=contract, **kwargs)
    assert state == {}
    return y


def plain(x, kernel, contract):
    dims = tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract))
    return lax.dot_general(x, kernel.astype(x.dtype), (dims, ((), ())))


def random(case, x_type, kernel_type=jnp.float32):
    x_shape, kernel_shape, contract = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=x_shape), x_type)
    return x, jnp.asarray(rng.normal(size=kernel_shape), kernel_type), contract


def weighted(product, x, kernel, contract):
    """A scalar of the product whose gradient is no constant."""
    y = product(x, kernel, contract).astype(jnp.float32)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_is_the_product_to_the_last_bit(case, dtype):
    x, kernel, contract = random(case, dtype)
    ours, expected = dot(x, kernel, contract), plain(x, kernel, contract)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_has_the_gradients_that_jax_derives(case, dtype):
    x, kernel, contract = random(case, dtype)
    gradients = lambda product: jax.grad(weighted, (1, 2))(product, x, kernel, contract)  # noqa: E731
    atol = 1e-5 if dtype == jnp.float32 else 0.06
    for ours, expected in zip(gradients(dot), gradients(plain), strict=True):
        assert ours.dtype == expected.dtype
        ours, expected = np.float32(ours), np.float32(expected)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_computes_in_the_type_of_x_and_returns_the_kernels_gradient_in_its_own():
    x, kernel, contract = random("one dim", jnp.bfloat16)
    assert dot(x, kernel, contract).dtype == jnp.bfloat16
    grad = jax.grad(weighted, 2)(dot, x, kernel, contract)
    assert grad.dtype == jnp.float32


def test_out_dtype_keeps_the_sums_of_bfloat16_products_in_float32():
    x, kernel, _ = random("one dim", jnp.bfloat16, jnp.bfloat16)
    y = dot(x, kernel, out_dtype=jnp.float32)
    assert y.dtype == jnp.float32
    expected = np.float64(x) @ np.float64(kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)

    product = lambda x, kernel, _: dot(x, kernel, out_dtype=jnp.float32)  # noqa: E731
    dx, dkernel = jax.grad(weighted, (1, 2))(product, x, kernel, 1)
    exact = jax.grad(weighted, (1, 2))(plain, np.float32(x), np.float32(kernel), 1)
    assert dx.dtype == dkernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(dx), exact[0], atol=0.06)
    np.testing.assert_allclose(np.float32(dkernel), exact[1], atol=0.06)


@pytest.mark.parametrize("outputs_first", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gives_the_products_of_its_backward_pass_to_who_has_the_gradient(
    case, outputs_first
):
    x, kernel, contract = random(case, jnp.bfloat16, jnp.bfloat16)
    y, pull = jax.vjp(lambda x, kernel: dot(x, kernel, contract), x, kernel)
    dy = jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype)
    dx, dkernel = Dot().backward(
        x,
        kernel,
        dy,
        contract=contract,
        kernel_dtype=jnp.float32,
        outputs_first=outputs_first,
    )
    expected_dx, expected = pull(dy)
    np.testing.assert_array_equal(dx, expected_dx)
    assert dkernel.dtype == jnp.float32
    if outputs_first:
        outputs = kernel.ndim - contract
        dims = (*range(outputs, kernel.ndim), *range(outputs))
        dkernel = dkernel.transpose(dims)
    np.testing.assert_allclose(dkernel, np.float32(expected), rtol=0.01, atol=1e-3)


def test_an_equation_is_an_einsum():
    x, kernel, _ = random("to heads", jnp.float32)
    y, _ = Dot()(x, kernel, {}, equation="btd,dhk->bhtk")
    np.testing.assert_array_equal(y, jnp.einsum("btd,dhk->bhtk", x, kernel))


def test_works_under_vmap_and_scan():
    x, kernel, _ = random("one dim", jnp.float32)
    expected = plain(x, kernel, 1)
    mapped = jax.vmap(lambda row: dot(row, kernel))(x)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    _, scanned = lax.scan(lambda carry, row: (carry, dot(row, kernel)), None, x)
    np.testing.assert_allclose(scanned, expected, atol=1e-6)


def test_two_builds_are_equal():
    assert Dot() == Dot() and hash(Dot()) == hash(Dot())
