"""Rows by the kernels of their groups: what is computed, and what is counted of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops import grouped_rows
from maxfdl.ops.cost import count_flops, count_written
from maxfdl.ops.fp8_block import Fp8Block
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.quantized_dot import QuantizedGroupedDot
from maxfdl.report import hlo
from maxfdl.run.topology import devices_of

ROWS, WIDTH, OUTPUTS, GROUPS, EXPECTED = 640, 24, 40, 4, 100
SIZES = jnp.array([300, 0, 139, 1], jnp.int32)
PRODUCT = 2 * EXPECTED * WIDTH * OUTPUTS


def arrays(dtype):
    rng = np.random.default_rng(0)
    shapes = (ROWS, WIDTH), (ROWS, OUTPUTS)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def gradients(dot, x, kernel, sizes):
    """Returns those of a product that is expected to have fewer rows than room."""

    def objective(x, kernel):
        y, _ = dot(x, kernel, {}, sizes, expected=EXPECTED)
        return jnp.sum(jnp.square(y))

    return jax.grad(objective, (0, 1))(x, kernel)


def compiled(dot, place=None):
    """Returns what the compiled gradients do, and what is counted before."""

    def abstract(shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    args = abstract((ROWS, WIDTH)), abstract((GROUPS, WIDTH, OUTPUTS))
    args = *args, abstract((GROUPS,), jnp.int32)
    step = functools.partial(gradients, dot)
    assert count_flops(step, *args) == 3 * PRODUCT
    assert count_written(step, *args) == 3 * PRODUCT
    text = jax.jit(step).lower(*args).compile().as_text()
    return hlo.read(text or "")


def test_a_block_has_64_rows():
    assert grouped_rows._ROWS == 64


@pytest.mark.parametrize(
    "dot",
    [
        GroupedDot("blocks"),
        QuantizedGroupedDot(Fp8Block(size=8), implementation="blocks"),
    ],
    ids=["plain", "FP8 by block"],
)
def test_flops_are_those_of_the_rows_that_groups_are_expected_to_have(dot):
    does = compiled(dot)
    assert does.flops == does.expected == 3 * PRODUCT


@pytest.mark.parametrize(
    "dot",
    [GroupedDot(), QuantizedGroupedDot(Fp8Block(size=8))],
    ids=["plain", "FP8 by block"],
)
def test_empty_rows_of_groups_of_equal_size_are_no_model_flops(dot):
    x = jnp.zeros((ROWS, WIDTH), jnp.bfloat16)
    kernel = jnp.zeros((GROUPS, WIDTH, OUTPUTS), jnp.bfloat16)

    def forward(x, kernel):
        return dot(x, kernel, {}, None, expected=EXPECTED)[0]

    assert count_flops(forward, x, kernel) == PRODUCT
    whole = 2 * ROWS * WIDTH * OUTPUTS  # which are multiplied with zeros
    assert count_written(forward, x, kernel) == whole


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradients_of_kernels_are_traced_in_every_type_of_activations(dtype):
    # For all platforms at once, that of the kernel for TPUs included.
    x, kernel = arrays(dtype)[0], jnp.zeros((GROUPS, WIDTH, OUTPUTS), dtype)
    step = functools.partial(gradients, GroupedDot("ragged"))
    _, dkernel = jax.eval_shape(step, x, kernel, SIZES)
    assert dkernel.dtype == dtype


@pytest.mark.slow
def test_a_tpu_multiplies_no_row_by_the_kernel_of_another_group():
    pytest.importorskip("libtpu")
    chip = devices_of("v5e:2x2")[0]
    does = compiled(GroupedDot("ragged"), jax.sharding.SingleDeviceSharding(chip))
    # XLA's own gradient of the kernels multiplies all rows for each group.
    assert does.flops == does.expected == 3 * PRODUCT
    assert not does.unknown


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernel_for_tpus_gives_the_gradient_of_each_group(dtype):
    x, dy = arrays(dtype)
    result = jnp.dtype(dtype)
    actual = grouped_rows._kernels_by_tiles(x, dy, SIZES, result, interpret=True)
    assert actual.dtype == result
    x, dy = np.float64(x), np.float64(dy)
    ends = np.cumsum(SIZES)
    expected = [
        x[end - size : end].T @ dy[end - size : end]
        for end, size in zip(ends, np.asarray(SIZES), strict=True)
    ]
    tolerance = {"bfloat16": 2.0**-8, "float16": 2.0**-10}[dtype]
    np.testing.assert_allclose(np.float64(actual), expected, rtol=tolerance, atol=1e-4)
