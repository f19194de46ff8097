"""Second moments by NumPy, of one product and of groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.dot import Dot
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.ops.initializers import Constant
from maxfdl.ops.second_moment import NAME, ObservedDot, ObservedGroupedDot

RNG = np.random.default_rng(0)


def normal(*shape: int):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def first(dot, declared: Parameter):
    return {name: each.first() for name, each in dot.declare(declared).items()}


def test_of_a_product_it_adds_up_over_calls_and_the_product_is_the_plain_one():
    declared = Parameter(
        (3, 4, 5), ("heads", "head_dim", "embed"), Constant(), "kernel", 2
    )
    dot, kernel = ObservedDot(), normal(3, 4, 5)
    state, inputs = first(dot, declared), [normal(2, 7, 3, 4), normal(1, 6, 3, 4)]
    for x in inputs:
        y, state = dot(x, kernel, state, contract=2)
        np.testing.assert_array_equal(y, Dot()(x, kernel, {}, contract=2)[0])
    rows = np.concatenate([np.reshape(x, (-1, 12)) for x in inputs])
    np.testing.assert_allclose(state[NAME], rows.T @ rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["ragged", "blocks"])
@pytest.mark.parametrize("sizes", [(5, 0, 7), None], ids=["unequal", "equal"])
def test_of_groups_each_has_its_own(implementation, sizes):
    axes = ("experts", "embed", "expert_mlp")
    declared = Parameter((3, 4, 6), axes, Constant(), "kernel", 1, 1)
    dot = ObservedGroupedDot(implementation)
    x, kernel = normal(12, 4), normal(3, 4, 6)
    given = None if sizes is None else jnp.asarray(sizes, jnp.int32)
    y, state = dot(x, kernel, first(dot, declared), given)
    plain, _ = GroupedDot(implementation)(x, kernel, {}, given)
    np.testing.assert_array_equal(y, plain)
    starts = np.cumsum([0, *(sizes or (4, 4, 4))])
    for i in range(3):
        rows = np.asarray(x)[starts[i] : starts[i + 1]]
        np.testing.assert_allclose(state[NAME][i], rows.T @ rows, atol=1e-5)
