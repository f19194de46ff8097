"""Which part of an array a device holds, as it follows from the arguments."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from maxfdl.report.memory.program import program_of

MESH = AbstractMesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
SQUARE = jax.ShapeDtypeStruct((128, 128), jnp.float32)
ROWS, COLUMNS, WHOLE = (("data",), ()), ((), ("model",)), ((), ())


def parts(function, *layouts):
    """Returns the shapes that a device holds of the results, for square arguments."""

    def run(*args):  # what only reshapes gives no array of its own
        return jax.tree.map(lambda y: y + 1, function(*args))

    jaxpr = jax.make_jaxpr(run)(*[SQUARE] * len(layouts))
    results = program_of(jaxpr, layouts, MESH.shape, "cpu").results
    shapes = [each.shape for each in results]
    return shapes[0] if len(shapes) == 1 else shapes


def pinned(x, *spec):
    return lax.with_sharding_constraint(x, NamedSharding(MESH, PartitionSpec(*spec)))


@pytest.mark.parametrize(
    ("function", "layouts", "expected"),
    [
        pytest.param(jnp.dot, (ROWS, WHOLE), (64, 128), id="product, rows"),
        pytest.param(jnp.dot, (ROWS, COLUMNS), (64, 32), id="product, both"),
        pytest.param(jnp.dot, (COLUMNS, WHOLE), (128, 128), id="product, summed dim"),
        pytest.param(jnp.transpose, (ROWS,), (128, 64), id="a transpose"),
        pytest.param(lambda x: jnp.sum(x, 0), (COLUMNS,), (32,), id="a sum"),
        pytest.param(jnp.add, (WHOLE, COLUMNS), (128, 32), id="elementwise"),
        pytest.param(jnp.add, (ROWS, COLUMNS), (64, 32), id="elementwise, both"),
        pytest.param(lambda x: x[:, None], (COLUMNS,), (128, 1, 32), id="a new dim"),
        pytest.param(
            lambda x: jnp.broadcast_to(x, (3, 128, 128)),
            (ROWS,),
            (3, 64, 128),
            id="a broadcast",
        ),
        pytest.param(
            lambda x: x.reshape(8, 16, 128), (ROWS,), (4, 16, 128), id="dims split"
        ),
        pytest.param(lambda x: x.reshape(-1), (ROWS,), (8192,), id="dims merged"),
        pytest.param(
            lambda x: x.reshape(-1), (COLUMNS,), (16384,), id="dims merged inside"
        ),
        pytest.param(lambda x: x[:3], (COLUMNS,), (3, 32), id="a slice"),
        pytest.param(
            lambda x: x[jnp.arange(3)], (COLUMNS,), (3, 32), id="rows looked up"
        ),
        pytest.param(
            lambda x: jnp.concatenate([x, x]), (COLUMNS,), (256, 32), id="joined"
        ),
        pytest.param(lambda x: pinned(x, "model"), (COLUMNS,), (32, 128), id="pinned"),
    ],
)
def test_parts_follow_from_the_operands(function, layouts, expected):
    assert parts(function, *layouts) == expected


def test_what_a_loop_carries_lies_as_the_body_leaves_it():
    def run(x):
        def body(carry, _):
            return carry + x, carry

        return lax.scan(body, jnp.zeros_like(x), length=3)

    assert parts(run, COLUMNS) == [(128, 32), (3, 128, 32)]


def test_inside_a_shard_map_arrays_are_the_parts_of_its_axes():
    seen = []

    def each(x):
        seen.append(x.shape)
        return lax.all_gather(x @ x.T, "data"), x

    mapped = jax.shard_map(
        each,
        mesh=MESH,
        in_specs=PartitionSpec("data"),
        out_specs=(PartitionSpec(), PartitionSpec("data")),
        axis_names={"data"},
        check_vma=False,
    )
    both = (("data",), ("model",))
    assert parts(mapped, both) == [(2, 64, 64), (64, 32)] and seen == [(64, 128)]
