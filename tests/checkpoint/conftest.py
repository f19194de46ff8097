"""A small state, a small data iterator, and the shapes to restore them into."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec


@pytest.fixture
def make_state():
    """Returns a function from a seed to a train state of several dtypes."""

    def make(seed=0, sharding=None):
        keys = jax.random.split(jax.random.key(seed), 2)
        params = {
            "kernel": jax.random.normal(keys[0], (16, 24)),
            "scale": jax.random.normal(keys[1], (8,), jnp.bfloat16),
        }
        state = {
            "step": jnp.int32(seed),
            "params": params,
            "optimizer": optax.adamw(1e-3).init(params),
            "amax": jnp.full((3,), seed, jnp.float8_e4m3fn),
            "seen": jnp.array([True, False, seed % 2 == 0]),
        }
        return jax.tree.map(lambda x: jax.device_put(x, sharding), state)

    return make


@pytest.fixture
def make_data():
    """Returns a function that makes an infinite shuffled grain iterator."""
    dataset = grain.MapDataset.range(50).shuffle(1).repeat()
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    return lambda: iter(dataset.to_iter_dataset(read))


@pytest.fixture
def abstract():
    """Returns a function to shapes, dtypes and shardings."""

    def of(state, sharding=None):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding or x.sharding
            ),
            state,
        )

    return of


@pytest.fixture
def assert_same():
    """Returns a function that fails unless two trees are equal to the last bit."""

    def check(actual, expected):
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        for left, right in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            assert left.dtype == right.dtype
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes()

    return check


@pytest.fixture
def row_sharding():
    """Returns a function that splits the first dim over the first `count` devices."""

    def over(count):
        devices = np.array(jax.devices()[:count])
        return NamedSharding(jax.sharding.Mesh(devices, "x"), PartitionSpec("x"))

    return over
