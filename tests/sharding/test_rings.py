"""Gathers and reductions ring by ring are those of a whole mesh axis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rings import all_gather, reduce_scatter

RINGS = pytest.mark.parametrize("rings", [(8,), (2, 4), (4, 2), (2, 2, 2)], ids=str)
X = jnp.arange(8.0 * 3 * 16).reshape(8, 3, 16) % 11


def on_eight_devices(local, x, in_specs, out_specs):
    mesh = MeshShape().build(jax.devices()[:8])
    return jax.shard_map(
        local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )(x)


@RINGS
def test_each_device_is_left_its_own_part_of_a_sum(rings):
    def local(x):
        return reduce_scatter(x[0], "fsdp", 1, rings)

    summed = on_eight_devices(local, X, P("fsdp"), P(None, "fsdp"))
    np.testing.assert_array_equal(summed, X.sum(0))


@RINGS
def test_parts_are_joined_in_the_order_of_the_devices(rings):
    def local(x):
        return all_gather(x, "fsdp", 1, rings)[None]

    whole = on_eight_devices(local, X[0], P(None, "fsdp"), P("fsdp"))
    np.testing.assert_array_equal(whole, jnp.broadcast_to(X[0], (8, 3, 16)))
