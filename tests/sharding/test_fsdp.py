"""FSDP moves each weight twice a step and its gradient once, and nothing else."""

import functools

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maxfdl.mutations import mesh, remat
from maxfdl.report import hlo
from maxfdl.run.topology import devices_of
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from maxfdl.train.compiler_options import compiler_options
from tests import tiny

LARGE = 600
"""Bytes of a collective that is no sum of losses, norms or weights of norms."""


def collectives(**axes):
    """Returns the large collectives of a step, and the bytes of the kernels of layers.

    Kernels are float32 and have at least 256 numbers, others in a stack at most 96.
    """
    config = tiny.experiment(functools.partial(mesh, **axes), remat)
    program = tiny.program(config, 8)
    text = program.compile_step().run.as_text()
    layers = program.abstract_state()["params"]["decoder"]
    size = sum(x.size for x in jax.tree.leaves(layers) if x.ndim > 2)
    found = hlo.read(text).collectives
    return [c for c in found if c.payload > LARGE], 4 * size


def sent(found, kind):
    """Returns the bytes that loops gather or reduce to, or from, whole weights."""
    return sum(c.payload * c.times for c in found if c.in_loop and c.kind == kind)


def test_loops_gather_a_weight_twice_and_reduce_scatter_its_gradient_once():
    found, size = collectives(fsdp=8)
    assert {c.kind for c in found if c.in_loop} == {"all-gather", "reduce-scatter"}
    assert sent(found, "all-gather") == 2 * size  # forward, and for the backward pass
    assert sent(found, "reduce-scatter") == size


def test_hybrid_sharding_crosses_its_outer_axis_once_with_shards_of_gradients():
    found, size = collectives(data=2, fsdp=4)
    across = [c for c in found if any(len({d // 4 for d in g}) > 1 for g in c.groups)]
    within = [c for c in found if c not in across]
    assert not [c for c in across if c.in_loop]
    assert sum(c.payload for c in across) <= 1.5 * size / 4  # with head and embedding
    assert sent(within, "all-gather") == 2 * size
    assert sent(within, "reduce-scatter") == size


@pytest.fixture
def on():
    """Makes the Sharding of a shard that runs apart along `fsdp`."""

    def make(rules=None, **axes):
        devices = MeshShape(**axes).build(jax.devices()[:8])
        return Sharding(devices, rules or AxisRules())

    return make


def test_axes_run_apart_that_cut_rows_and_leave_no_weight_cut_in_use(on):
    assert on(data=2, fsdp=4).parallel == ("data", "fsdp")
    assert on(fsdp=4, tensor=2).parallel == ("fsdp",)
    assert on(fsdp=2, expert=4).parallel == ("fsdp",)
    experts = AxisRules(experts=("fsdp",))
    assert on(experts, data=2, fsdp=4).parallel == ("data",)


@pytest.mark.parametrize("reduce", ["compute", "float32"])
def test_a_gathered_weight_is_whole_and_its_gradient_is_added_up(on, reduce):
    sharding = on(AxisRules(reduce=reduce), data=2, fsdp=4)
    axes = ("mlp", "embed")

    def local(weight, x):
        here = sharding.within(sharding.parallel)
        loss = lambda w: (here.gather(w, axes, "float32") * x[0]).sum()  # noqa: E731
        return jax.grad(loss)(weight)[None]

    weight = jax.numpy.arange(3.0 * 8).reshape(3, 8)
    x = jax.numpy.arange(8.0 * 3 * 8).reshape(8, 3, 8)
    gradients = jax.jit(
        jax.shard_map(
            local,
            mesh=sharding.mesh,
            in_specs=(P(None, "fsdp"), P(("data", "fsdp"))),
            out_specs=P("data", None, "fsdp"),
            axis_names={"data", "fsdp"},
            check_vma=False,
        )
    )(weight, x)
    # Along `data`, which does not cut the weight, they are added up after the step.
    assert (gradients == x.reshape(2, 4, 3, 8).sum(1)).all()


@pytest.mark.slow
def test_tpus_cast_a_weight_in_the_loop_and_gather_it_beside_the_product_before_it():
    pytest.importorskip("libtpu")
    sharding = Sharding(MeshShape().build(devices_of("v5p:2x2x1")), AxisRules())
    place, rows = sharding.spec(("layers", "embed", "mlp")), P("fsdp")

    def local(x, weights):
        here = sharding.within(sharding.parallel)

        def layer(x, weights):
            for weight in weights:
                x = x @ here.gather(weight, ("embed", "mlp"), x.dtype)
            return x, None

        return jax.lax.scan(layer, x, weights)[0]

    def array(shape, dtype, spec):
        place = NamedSharding(sharding.mesh, spec)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    run = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(rows, place), out_specs=rows
    )
    x = array((4 * 2048, 1024), "bfloat16", rows)
    weights = [array((4, 1024, 1024), "float32", place)] * 3
    options = compiler_options(sharding.mesh)
    compiled = jax.jit(run).lower(x, weights).compile(compiler_options=options)
    text = compiled.as_text()
    found = hlo.read(text).collectives
    assert any(c.kind == "all-gather" and c.in_loop and c.beside for c in found)
    assert "f32[4,256,1024]" in text and "bf16[4,256,1024]" not in text
