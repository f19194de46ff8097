"""FP8 products compiled for a TPU with FP8 units that need not be there."""

import functools

import fiddle as fdl
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.layers.parameter import Parameter
from maxfdl.mutations import compute_dtype, enable_fp8
from maxfdl.mutations.products import is_matrix_product
from maxfdl.ops.dot import Dot
from maxfdl.ops.fp8_block import Fp8Block
from maxfdl.ops.fp8_recipes import Fp8Current, Fp8Delayed
from maxfdl.ops.initializers import Constant
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from maxfdl.report import hlo
from maxfdl.report.modules import modules_of
from maxfdl.train.program import Program

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow

ROWS, INPUTS, OUTPUTS, GROUPS = 1024, 256, 512, 4
RECIPES = {
    "current": Fp8Current(),
    "channel": Fp8Current(granularity="channel"),
    "delayed": Fp8Delayed(history=4),
    "block": Fp8Block(),
}
E4M3, E5M2 = "f8e4m3fn", "f8e5m2"


@pytest.fixture
def chip(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    # Else a second process of pytest-xdist finds the library taken.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="tpu7x:2x2x1")
    return topology.devices[0]


def compiled(dot, shape, axes, chip, *sizes):
    """Returns the program of a product of bfloat16 arrays with its gradients."""
    place = jax.sharding.SingleDeviceSharding(chip)
    array = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    kernel = Parameter(
        shape, axes, Constant(), "kernel", contracted=1, batched=len(shape) - 2
    )
    declared = dot.declare(kernel).items()
    state = {name: array(each.shape, jnp.float32) for name, each in declared}

    def step(x, kernel, dy, state, *sizes):
        product = lambda x, kernel: dot(x, kernel, state, *sizes)  # noqa: E731
        y, pull, new = jax.vjp(product, x, kernel, has_aux=True)
        return y, pull(dy), new

    dtype = jnp.bfloat16
    x, dy = array((ROWS, INPUTS), dtype), array((ROWS, OUTPUTS), dtype)
    counts = [array((GROUPS,), jnp.int32) for _ in sizes]
    lowered = jax.jit(step).lower(x, array(shape, dtype), dy, state, *counts)
    return lowered.compile().as_text()


def formats(recipe):
    """Returns the types of the factors of a product and of its two gradients."""
    forward, backward = (
        {"e4m3": E4M3, "e5m2": E5M2}[each] for each in (recipe.forward, recipe.backward)
    )
    return [{forward}, {forward, backward}, {forward, backward}]


def in_any_order(factors):
    return sorted(map(sorted, factors))


def each(*recipes):
    """That of blocks compiles long, and is left to the exhaustive part."""
    marks = {"block": pytest.mark.exhaustive}
    cases = [pytest.param(name, marks=marks.get(name, ())) for name in recipes]
    return pytest.mark.parametrize("recipe", cases)


@each(*RECIPES)
def test_units_of_a_tpu_are_given_fp8(chip, recipe):
    dims = (INPUTS, OUTPUTS), ("embed", "mlp"), chip
    plain = hlo.factors(compiled(Dot(), *dims))
    assert [set(each) for each in plain] == [{"bf16"}] * 3
    found = hlo.factors(compiled(QuantizedDot(RECIPES[recipe]), *dims))
    assert in_any_order(map(set, found)) == in_any_order(formats(RECIPES[recipe]))


@each("delayed", "block")
def test_units_of_a_tpu_are_given_fp8_rows_of_groups(chip, recipe):
    dot = QuantizedGroupedDot(RECIPES[recipe], "ragged")
    axes = "experts", "embed", "expert_mlp"
    text = compiled(dot, (GROUPS, INPUTS, OUTPUTS), axes, chip, "sizes")
    found = in_any_order(map(set, hlo.factors(text)))
    assert found == in_any_order(formats(dot.recipe))


def test_in_a_step_no_product_that_it_names_has_other_factors(chip):
    config = compute_dtype(zoo_smoke.experiment("mixtral"), dtype="bfloat16")
    config = enable_fp8(config)
    for node in graph.nodes_of(config.model, is_matrix_product):
        if fdl.get_callable(node) is QuantizedGroupedDot:
            node.implementation = "ragged"  # what `auto` is on a TPU
    made = graph.build(config)
    trainer = made.make_trainer(made.make_sharding([chip]))
    program = Program(trainer, made.batch_size, made.sequence_length)
    step = jax.jit(trainer.step)
    lowered = step.lower(program.abstract_state(), program.abstract_batch())
    found = [set(each) for each in hlo.factors(lowered.compile().as_text())]
    named = sum(
        "recipe=Fp8" in m.fields.get("dot", "") for m in modules_of(config.model)
    )
    assert found.count({E4M3}) == 3 * named
    others = 3 * 3  # the head, and scores and sums of values in attention
    assert found.count({"bf16"}) == others
