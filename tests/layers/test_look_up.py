"""Rows of a table whose vocabulary lies on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.context import Context, Rows
from maxfdl.layers.look_up import look_up
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.layers.families import assert_same_bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        (MeshShape(data=2, fsdp=2, tensor=2), AxisRules()),
        (MeshShape(data=1, fsdp=1, tensor=8), AxisRules()),
        (MeshShape(data=4, fsdp=2, tensor=1), AxisRules()),
        (MeshShape(data=1, fsdp=2, tensor=4), AxisRules(vocab=("fsdp", "tensor"))),
        (
            MeshShape(data=2, fsdp=2, tensor=2),
            AxisRules(batch=("data",), vocab=("fsdp", "tensor"), embed=()),
        ),
    ],
)
def test_rows_and_gradients_are_those_of_one_device(mesh, rules, dtype):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(16, 6)), dtype)
    tokens = jnp.int32(rng.integers(0, 16, (4, 5)))
    # Powers of two, whose sums are exact in any order.
    weights = jnp.asarray(2.0 ** rng.integers(-2, 2, (4, 5, 6)), dtype)

    def rows_and_gradient(context):
        def objective(table):
            rows = look_up(table, tokens, context)
            return jnp.sum(rows.astype(jnp.float32) * weights), rows

        return jax.jit(jax.grad(objective, has_aux=True))(table)

    sharding = Sharding(mesh.build(jax.devices()), rules)
    alone = rows_and_gradient(Context(Rows(tokens)))
    assert_same_bits(rows_and_gradient(Context(Rows(tokens), sharding=sharding)), alone)
    np.testing.assert_array_equal(alone[1], np.asarray(table)[np.asarray(tokens)])
