"""count_flops against products counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from maxfdl.ops.attention import DotProductAttention
from maxfdl.ops.cost import (
    count_flops,
    count_written,
    declare_flops,
    expect_flops,
    expected_flops,
)
from maxfdl.ops.dot import Dot
from maxfdl.ops.mask import Causal, Mask, Places

M, K, N = 3, 5, 7
PRODUCT = 2 * M * K * N
A, B = jnp.ones((M, K)), jnp.ones((K, N))


def test_a_product_costs_two_per_multiplication():
    assert count_flops(jnp.matmul, A, B) == PRODUCT


def test_arguments_may_be_abstract():
    abstract = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (A, B)]
    assert count_flops(jnp.matmul, *abstract) == PRODUCT


def test_elementwise_work_is_free():
    assert count_flops(lambda a: jnp.exp(a) + a, A) == 0


def test_batched_products_count_once_per_batch():
    batched = jax.vmap(jnp.matmul, (0, None))
    assert count_flops(batched, jnp.ones((4, M, K)), B) == 4 * PRODUCT


def test_a_product_over_several_dims_counts_all_of_them():
    x, kernel = jnp.ones((2, 3, 4)), jnp.ones((3, 4, 5))
    product = lambda x, k: Dot()(x, k, {}, contract=2)[0]  # noqa: E731
    assert count_flops(product, x, kernel) == 2 * 2 * 12 * 5


def test_a_scan_counts_every_trip():
    def loop(a, b):
        return lax.scan(lambda c, _: (c, a @ b), 0.0, length=11)

    assert count_flops(loop, A, B) == 11 * PRODUCT


def test_scans_inside_scans_multiply():
    def inner(a, b):
        return lax.scan(lambda c, _: (c, a @ b), 0.0, length=3)

    def outer(a, b):
        return lax.scan(lambda c, _: (c, inner(a, b)), 0.0, length=5)

    assert count_flops(outer, A, B) == 15 * PRODUCT


def test_a_conditional_counts_its_dearer_branch():
    def choose(flag, a, b):
        return lax.cond(flag, lambda: a @ b, lambda: (a @ b) + (2 * a) @ b)

    assert count_flops(choose, True, A, B) == 2 * PRODUCT


def test_jit_changes_nothing():
    assert count_flops(jax.jit(jnp.matmul), A, B) == PRODUCT


def dot(a, b):
    return Dot()(a, b, {})[0]


@pytest.mark.parametrize("product", [jnp.matmul, dot])
def test_gradients_by_both_operands_cost_two_more_products(product):
    def gradients(a, b):
        return jax.grad(lambda a, b: jnp.sum(product(a, b) ** 2), (0, 1))(a, b)

    assert count_flops(gradients, A, B) == 3 * PRODUCT


def test_recomputation_counts():
    def gradients(a, b):
        again = jax.checkpoint(lambda a, b: jnp.sin(a @ b))
        return jax.grad(lambda a, b: jnp.sum(again(a, b)), (0, 1))(a, b)

    assert count_flops(gradients, A, B) == 4 * PRODUCT


def test_a_declared_cost_stands_for_whatever_is_inside():
    declared = declare_flops(jnp.matmul, 1234)
    assert count_flops(declared, A, B) == 1234
    assert count_flops(lambda a, b: declared(a, b) + a @ b, A, B) == 1234 + PRODUCT
    assert (declared(A, B) == A @ B).all()


def test_a_shard_map_counts_every_part_and_no_repetition():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    rows, whole = PartitionSpec("a"), PartitionSpec()
    product = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )
    assert count_flops(product, jnp.ones((2 * M, K)), B) == 2 * PRODUCT


def test_what_is_written_counts_whatever_is_declared():
    declared = declare_flops(jnp.matmul, 1234)
    assert count_written(declared, A, B) == PRODUCT
    gradients = jax.grad(lambda a, b: jnp.sum(declared(a, b) ** 2), (0, 1))
    assert count_written(gradients, A, B) == 3 * PRODUCT


def test_what_a_call_is_expected_to_do_counts_however_it_is_counted():
    def loop(a, b, times):
        return lax.fori_loop(
            0, times, lambda _, total: total + a @ b, jnp.zeros((M, N))
        )

    expected = expect_flops(loop, 1234)
    for count in (count_flops, count_written):
        assert count(expected, A, B, 3) == 1234
        # Nor does a part of the call that has no products, such as what JAX moves out
        # of a loop.
        assert count(expect_flops(jnp.cos, 1234), A) == 0
    assert expected_flops("jit(expected_flops_7)/jit(expected_flops_12)/dot") == 12
    assert expected_flops("jit(step)/dot") is None


def test_a_ragged_product_and_its_gradients_count_one_kernel_a_row():
    rows, kernels = jnp.ones((8, K)), jnp.ones((2, K, N))

    def loss(rows, kernels):
        return jnp.sum(lax.ragged_dot(rows, kernels, jnp.array([3, 5])) ** 2)

    assert count_written(loss, rows, kernels) == 2 * 8 * K * N
    assert count_written(jax.grad(loss, (0, 1)), rows, kernels) == 3 * 2 * 8 * K * N


def test_a_kernel_of_attention_counts_half_of_its_scores_and_twice_that_backward():
    rows, tokens, heads, width = 2, 128, 4, 128
    q = jnp.ones((rows, tokens, heads, width))
    kv = jnp.ones((rows, tokens, 2, width))
    places = Places(jnp.broadcast_to(jnp.arange(tokens), (rows, tokens)), None)
    mask = Mask.within(Causal(), places)

    def loss(q, k, v):
        return jnp.sum(DotProductAttention("tokamax")(q, k, v, mask))

    forward = 2 * rows * tokens**2 * heads * width
    assert count_written(loss, q, kv, kv) == forward
    # The backward pass has a few more, of outputs and their gradients.
    gradients = count_written(jax.grad(loss, (0, 1, 2)), q, kv, kv)
    assert gradients == pytest.approx(3 * forward, rel=0.01)


def test_causal_attention_counts_half_of_its_scores():
    rows, tokens, heads, width = 2, 70, 4, 8
    q = jnp.ones((rows, tokens, heads, width))
    kv = jnp.ones((rows, tokens, 2, width))
    places = Places(jnp.broadcast_to(jnp.arange(tokens), (rows, tokens)), None)
    mask = Mask.within(Causal(), places)
    whole = 4 * rows * tokens**2 * heads * width
    assert count_flops(DotProductAttention("xla"), q, kv, kv, mask) == whole // 2
