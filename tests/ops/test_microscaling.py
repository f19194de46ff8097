"""Products whose factors are in blocks along the dim that is summed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.block_scaling import FORMATS
from maxfdl.ops.cost import count_flops
from maxfdl.ops.dot import Dot
from maxfdl.ops.microscaling import Mxfp4, Mxfp8, Nvfp4
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from tests.ops.test_block_scaling import in_blocks
from tests.ops.test_quantized_dot import (
    assert_close,
    bytes_kept,
    random,
    with_gradients,
)

RECIPES = {"mxfp8": Mxfp8(), "mxfp4": Mxfp4(), "nvfp4": Nvfp4()}


def recipe(name, backward=False):
    return Mxfp8(backward=True) if backward else RECIPES[name]


def along(x, dim, name):
    """An array in blocks along a dim, in float64."""
    if not x.size:
        return np.float64(x)
    return np.moveaxis(in_blocks(np.moveaxis(x, dim, -1), name), -1, dim)


def by_formula(x_TI, kernel_IO, dy_TO, name, backward):
    """Product and gradients of 2-D arrays."""
    x, kernel = along(x_TI, 1, name), along(kernel_IO, 0, name)
    if not backward:
        return x @ kernel, dy_TO @ kernel.T, x.T @ dy_TO
    dx = along(dy_TO, 1, name) @ along(kernel_IO, 1, name).T
    return x @ kernel, dx, along(x_TI, 0, name).T @ along(dy_TO, 0, name)


@pytest.mark.parametrize(
    ("name", "backward"),
    [("mxfp8", True), ("nvfp4", False), ("mxfp8", False), ("mxfp4", False)],
)
def test_product_and_gradients_are_those_of_the_formula(name, backward):
    # Whole blocks and shorter last ones, kernels from and to heads.
    x, kernel = random(5, 9, 3, 14), random(3, 14, 2, 19, seed=1)
    dy = random(5, 9, 2, 19, seed=2) * np.float32(1e-4)
    dot = QuantizedDot(recipe(name, backward))

    def product(x, kernel):
        return dot(x, kernel, {}, contract=2)[0]

    flat = x.reshape(45, 42), kernel.reshape(42, 38), dy.reshape(45, 38)
    expected = by_formula(*flat, name, backward)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


@pytest.mark.parametrize(
    ("name", "backward", "sizes", "implementation"),
    [
        ("mxfp8", True, [0, 40, 0, 33, 2], "blocks"),
        ("nvfp4", False, [0, 40, 0, 33, 2], "blocks"),
        ("mxfp8", True, None, "blocks"),
        pytest.param(
            "mxfp8", True, [0, 40, 0, 33, 2], "ragged", marks=pytest.mark.slow
        ),
        pytest.param("mxfp4", False, [3, 0], "ragged", marks=pytest.mark.slow),
    ],
)
def test_products_of_groups_are_those_of_the_formula(
    name, backward, sizes, implementation
):
    given = None if sizes is None else jnp.asarray(sizes)
    sizes = sizes or [34, 34]
    x, kernel = random(sum(sizes), 42), random(len(sizes), 42, 19, seed=1)
    dy = random(sum(sizes), 19, seed=2) * np.float32(1e-4)
    if name == "nvfp4":  # rows share a tensor's scale, kernels have one each
        x[0, 0] = 4.0
    dot = QuantizedGroupedDot(recipe(name, backward), implementation)

    def product(x, kernel):
        return dot(x, kernel, {}, given)[0]

    x_cut = x if name != "nvfp4" else in_blocks(x, name)
    cut = np.cumsum(sizes)[:-1]
    groups = zip(np.split(x_cut, cut), kernel, np.split(dy, cut), strict=True)
    if name == "nvfp4":
        parts = [
            (x @ k, dy @ k.T, x.T @ dy)
            for x, k, dy in ((x, along(k, 0, name), dy) for x, k, dy in groups)
        ]
    else:
        parts = [by_formula(*group, name, backward) for group in groups]
    y, dx, dkernel = zip(*parts, strict=True)
    expected = np.concatenate(y), np.concatenate(dx), np.stack(dkernel)
    assert_close(with_gradients(jax.jit(product), x, kernel, dy), expected)


def test_an_einsum_is_a_product_for_each_of_its_batch_dims():
    q, kernel = random(2, 1, 3, 40), random(5, 3, 40, seed=1)
    dot = QuantizedDot(Mxfp8())
    equation = "bthn,lhn->bthl"
    y, _ = jax.jit(lambda q, kernel: dot(q, kernel, {}, equation=equation))(q, kernel)
    expected = np.einsum(equation, in_blocks(q, "mxfp8"), in_blocks(kernel, "mxfp8"))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_half_a_byte_or_a_byte_per_number_and_scale_is_kept_for_the_backward_pass():
    x, kernel = jnp.ones((64, 96), jnp.bfloat16), jnp.ones((96, 32), jnp.bfloat16)
    numbers = x.size + kernel.size
    for name, form in FORMATS.items():
        for backward in (False, True)[: 1 + (name == "mxfp8")]:
            kept = bytes_kept(QuantizedDot(recipe(name, backward)), x, kernel)
            # JAX counts a byte for a number of 4 bits.
            assert kept <= numbers + numbers // form.size + 8, name


@pytest.mark.parametrize("name", FORMATS)
def test_where_the_hardware_can_it_multiplies_blocks(name):
    dot = QuantizedDot(recipe(name, name == "mxfp8"))
    x, kernel = jnp.ones((64, 96), jnp.bfloat16), jnp.ones((96, 32), jnp.bfloat16)
    step = jax.jit(jax.grad(lambda x, k: jnp.sum(dot(x, k, {})[0] ** 2), (0, 1)))
    text = step.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    calls = [
        c for c in text.splitlines() if 'stablehlo.composite "xla.scaled_dot"' in c
    ]
    assert len(calls) == (3 if name == "mxfp8" else 1)
    numbers = "f8E4M3FN" if name == "mxfp8" else "f4E2M1FN"
    scales = "f8E4M3FN" if name == "nvfp4" else "f8E8M0FNU"
    for call in calls:
        assert call.count(f"x{numbers}>") >= 2 and call.count(f"x{scales}>") >= 2
        assert call.endswith("xf32>")


def test_its_flops_are_those_of_the_plain_product():
    x, kernel = jnp.ones((2, 9, 3, 14)), jnp.ones((3, 14, 2, 19))

    def flops(dot):
        product = lambda x, kernel: jnp.sum(dot(x, kernel, {}, contract=2)[0])  # noqa: E731
        return count_flops(jax.grad(product, (0, 1)), x, kernel)

    assert flops(QuantizedDot(Mxfp8(backward=True))) == flops(Dot())
    assert flops(QuantizedDot(Nvfp4())) == flops(Dot())


def test_what_is_no_number_is_seen():
    x, kernel = random(3, 40), random(40, 5, seed=1)
    x[1, 2], x[2] = np.nan, 0
    y, _ = jax.jit(lambda x, kernel: QuantizedDot(Nvfp4())(x, kernel, {}))(x, kernel)
    assert np.all(np.isnan(y[1])) and np.all(np.isfinite(y[::2]))
    assert not np.any(y[2])
