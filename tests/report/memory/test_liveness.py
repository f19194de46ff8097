"""What small programs hold in memory at a time, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from maxfdl.report.memory.layouts import whole
from maxfdl.report.memory.liveness import buffers_of, most_at_once
from maxfdl.report.memory.program import program_of

N = 128
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
STACK = jax.ShapeDtypeStruct((6, N, N), jnp.float32)
ONE = 4 * N * N
"""Bytes of a square, in which results below are counted."""


def squares(function, *args, platform="cpu", sizes=None):
    """Returns the squares that `function` holds at its peak besides what it is given.

    What it returns is written over arguments, so all functions here return numbers.
    """
    jaxpr = jax.make_jaxpr(function)(*args)
    program = program_of(jaxpr, [whole(x.ndim) for x in args], sizes or {}, platform)
    held = most_at_once(buffers_of(program))
    return pytest.approx(sum(each.bytes for each in held) / ONE, abs=0.01)


def test_elementwise_operations_are_not_written():
    assert squares(lambda x: jnp.sum(jnp.exp(2 * x) + 1), SQUARE) == 0


def test_a_product_is_written_until_its_last_use():
    assert squares(lambda x: jnp.sum(x @ x), SQUARE) == 1
    assert squares(lambda x: jnp.sum((x @ x) @ x), SQUARE) == 2

    def chain(x):
        for _ in range(5):
            x = x @ x
        return jnp.sum(x)

    assert squares(chain, SQUARE) == 2


def test_a_product_is_written_in_the_type_that_it_is_cast_to():
    assert squares(lambda x: jnp.sum((x @ x).astype(jnp.bfloat16) @ x), SQUARE) == 1.5


def test_a_sum_is_written_over_what_it_is_of():
    def residual(x):
        y = x @ x
        return jnp.sum((y + y @ x) @ x)

    # Both terms, then the sum over the first, and the product of that.
    assert squares(residual, SQUARE) == 2


def test_padding_by_nothing_gives_the_same_array():
    def padded(x):
        y = x @ x
        z = lax.pad(y, 0.0, [(0, 0, 0)] * 2)
        return jnp.sum(lax.sort(z)) + jnp.sum(y)

    # The product, and what is sorted.
    assert squares(padded, SQUARE) == 2


def test_operands_of_what_is_not_fused_are_written():
    assert squares(lambda x: jnp.sum(lax.sort(2 * x)), SQUARE) == 2


def test_a_result_that_nothing_needs_is_not_computed():
    assert squares(lambda x: (x @ x, jnp.sum(x))[1], SQUARE) == 0


def test_what_a_loop_carries_has_one_buffer():
    def added(total, x):
        return total + x @ x, None

    def looped(x, xs):
        return jnp.sum(lax.scan(added, x @ x, xs)[0])

    def repeated(x):
        return jnp.sum(lax.while_loop(lambda y: y[0, 0] < 9, lambda y: y @ x @ x, x))

    assert squares(looped, SQUARE, STACK) == 2
    # A copy of the argument, which the second product is written over, and the first.
    assert squares(repeated, SQUARE) == 2


def test_what_all_trips_leave_stands_beside_what_one_needs():
    def stacked(x, xs):
        _, left = lax.scan(lambda c, y: (c, (y @ y) @ c), x, xs)
        return jnp.sum(left)

    assert squares(stacked, SQUARE, STACK) == 6 + 2


def test_a_sum_over_devices_that_is_needed_behind_a_loop_is_taken_there():
    mesh = AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def local(x, xs):
        part = 2 * lax.psum_scatter(x @ x, "data", tiled=True)
        y, _ = lax.scan(lambda y, w: (y @ w, None), x @ x, xs)
        return jnp.sum(y) + jnp.sum(part)

    def run(x, xs):
        specs = PartitionSpec(), PartitionSpec()
        return jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )(x, xs)

    # The whole product, what the loop carries, and a trip's product.
    assert squares(run, SQUARE, STACK, sizes={"data": 4}) == 3


def test_the_backward_pass_of_a_loop_keeps_what_remat_names():
    def loss(remat):
        def layer(x, w):
            return jnp.sin(jnp.sin(x @ w) @ w), None

        def run(x, ws):
            return jnp.sum(lax.scan(jax.checkpoint(layer, policy=remat), x, ws)[0])

        return lambda x, ws: jnp.sum(jax.grad(run)(x, ws))

    policies = jax.checkpoint_policies
    inputs = squares(loss(policies.nothing_saveable), SQUARE, STACK).expected
    products = squares(loss(policies.dots_saveable), SQUARE, STACK).expected
    # The input of each layer, or its two products.
    assert 6 < inputs < 12 < products < 18


def test_weights_are_cast_once_for_all_loops_that_read_them():
    def twice(x, ws):
        def layer(x, w):
            return x @ w.astype(x.dtype), None

        x = x.astype(jnp.bfloat16)
        x, _ = lax.scan(layer, x, ws)
        return jnp.sum(lax.scan(layer, x, ws)[0])

    # The stack, what is carried, and a trip's product.
    assert squares(twice, SQUARE, STACK) == 3 + 0.5 + 0.5


def test_of_branches_the_largest_counts_and_of_platforms_the_one_asked_for():
    def few(x):
        return jnp.sum(x @ x)

    def many(x):
        return jnp.sum(jnp.concatenate([x, x]) @ x)

    def either(x):
        return lax.cond(x[0, 0] > 0, few, many, x)

    def by_platform(x):
        return lax.platform_dependent(x, tpu=few, default=many)

    assert squares(either, SQUARE) == 2
    assert squares(by_platform, SQUARE, platform="tpu") == 1
    assert squares(by_platform, SQUARE, platform="gpu") == 2


def test_arrays_in_host_memory_take_none_of_the_device():
    def there_and_back(x):
        y = jax.device_put(x @ x, jax.memory.Space.Host)
        return jnp.sum(jax.device_put(y, jax.memory.Space.Device) @ x)

    assert squares(there_and_back, SQUARE) == 2


def test_a_tpu_pads_the_last_dim_to_its_lanes():
    narrow = jax.ShapeDtypeStruct((N, 2 * N, N // 2), jnp.float32)

    def reversed_twice(x):
        return jnp.sum(lax.sort(lax.sort(x)))

    assert squares(reversed_twice, narrow) == 2 * N
    assert squares(reversed_twice, narrow, platform="tpu") == 4 * N
