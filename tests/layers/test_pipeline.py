"""A pipeline gives what its layers give in sequence, whatever they keep besides.

The layer here has all that a pipeline must carry: a kernel, state that the forward pass
and state that the backward pass leaves, side results, randomness and positions of its
rows. On rows of zeros, which nothing but a bubble has, it gives NaN.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen

from maxfdl.errors import UserError
from maxfdl.layers.execution import Remat, Scan
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.layers.linen.module import param as linen_param
from maxfdl.layers.linen.module import state as linen_state
from maxfdl.layers.nnx.module import Module as NnxModule
from maxfdl.layers.nnx.module import param as nnx_param
from maxfdl.layers.nnx.module import state as nnx_state
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.pipeline import Pipeline, Pipeline1F1B
from maxfdl.layers.sinks import Max, Sum
from maxfdl.ops.initializers import Normal
from maxfdl.ops.state import StateDeclaration
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.layers.families import FEATURES, Case, on_vectors, packed_tokens
from tests.layers.families import stack as stack_of

KEY = jax.random.key(3)
ROWS = 24


def kernel_of(features):
    return Parameter((features, features), ("embed", "mlp"), Normal(0.2), "kernel", 1)


STATES = {
    "rows": StateDeclaration((), (), merge="sum"),
    "peak": StateDeclaration((), (), merge="max"),
    "gradient": StateDeclaration((), (), merge="max", backward=True),
}


@jax.custom_vjp
def watched(x, greatest):
    """Returns `x`; the backward pass leaves the greatest magnitude of its gradient."""
    return x


watched.defvjp(lambda x, _: (x, None), lambda _, dy: (dy, jnp.max(jnp.abs(dy))))


def forward(kernel, state, x, context):
    """Returns the output and the new values of the state."""
    peak = jnp.max(jnp.abs(x))
    context.emit("peak", Max(peak))
    context.emit("sum", Sum(jnp.sum(jnp.square(x))))
    x = x * jnp.where(jnp.any(x != 0), 1.0, jnp.nan)
    h = (x + context.positions[..., None] * 0.01) @ kernel
    if context.key is not None:
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))
        h = h + 0.1 * noise(context.row_keys())
    h = watched(x + jnp.tanh(h), state["gradient"])
    return h, {"rows": state["rows"] + x.shape[0], "peak": peak}


class NnxLayer(NnxModule):
    def __init__(self, *, features, rngs):
        self.kernel = nnx_param(kernel_of(features), rngs)
        for name, declared in STATES.items():
            setattr(self, name, nnx_state(declared))

    def __call__(self, x, context):
        state = {name: getattr(self, name).read() for name in STATES}
        x, new = forward(self.kernel[...], state, x, context)
        for name, value in new.items():
            getattr(self, name).write(value)
        return x


class LinenLayer(LinenModule, kw_only=True):
    features: int

    @flax_linen.compact
    def __call__(self, x, context):
        kernel = linen_param(self, "kernel", kernel_of(self.features))
        cells = {name: linen_state(self, name, each) for name, each in STATES.items()}
        state = {name: cell.value for name, cell in cells.items()}
        x, new = forward(kernel, state, x, context)
        for name, value in new.items():
            cells[name].value = jax.lax.stop_gradient(value)
        return x


LAYERS = {"nnx": NnxLayer, "linen": LinenLayer}


def model(execution, layers, family="nnx", remat: Remat = "none", **mesh):
    """Cycles of two layers; without a mesh on one device."""
    factory = functools.partial(
        stack_of, execution=execution, remat=remat, repeats=layers
    )
    case = Case(
        lambda f: factory(f, *[LAYERS[family]] * 2),
        {"features": FEATURES},
        on_vectors,
    )
    made = case.model(family)
    if not mesh:
        return made
    shape = MeshShape(**{"fsdp": 1, **mesh})
    devices = jax.devices()[: np.prod([*mesh.values()])]
    return made.on(Sharding(shape.build(devices), AxisRules()))


def inputs() -> dict[str, Any]:
    return packed_tokens(ROWS) | {"key": KEY}


def objective(made):
    def value(params, state, inputs):
        out = made.apply({"params": params, "state": state}, **inputs)
        weights = jnp.cos(jnp.arange(out.hidden.size)).reshape(out.hidden.shape)
        sums = [sink.value for key, sink in out.sinks.items() if key.name == "sum"]
        loss = jnp.sum(out.hidden * weights) + 0.01 * sum(map(jnp.sum, sums))
        return loss, (out.hidden, out.state, out.sinks)

    return jax.jit(jax.grad(value, (0, 1), has_aux=True))


@functools.cache
def variables(layers):
    return model(Scan(), layers).init(KEY)


def run(made, layers):
    """Returns gradients of parameters and state, and output, state and sinks."""
    given = variables(layers)
    return objective(made)(given["params"], given["state"], inputs())


@functools.cache
def in_sequence(layers):
    return run(model(Scan(), layers), layers)


def assert_equal(actual, expected):
    """Compares leaves by the norm of their difference, at float32's noise."""

    def compare(a, b):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= 1e-6 * max(np.linalg.norm(b), 1e-30)

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(compare, actual, expected)


CASES = {
    "as many stages as layers": (4, Pipeline(4, 4), {}),
    "more microbatches than stages": (4, Pipeline(2, 6), {}),
    "fewer microbatches than stages": (4, Pipeline(4, 2), {}),
    "a rest before": (7, Pipeline(3, 4), {}),
    "repeats": (8, Pipeline(2, 4, repeats=2), {}),
    "repeats and a rest": (7, Pipeline(2, 2, repeats=3), {}),
    "four devices": (4, Pipeline(4, 8), {"stage": 4}),
    "four devices with two stages each": (8, Pipeline(8, 4), {"stage": 4}),
    "four devices, repeats that share no divisor": (
        12,
        Pipeline(4, 4, repeats=3),
        {"stage": 4},
    ),
    "four devices, repeats of stages in twos, and a rest": (
        17,
        Pipeline(8, 8, repeats=2),
        {"stage": 4},
    ),
    "beside fsdp and tensor": (
        4,
        Pipeline(2, 2, repeats=2),
        {"stage": 2, "fsdp": 2, "tensor": 2},
    ),
    "1f1b": (4, Pipeline1F1B(2, 6), {}),
    "1f1b of fewer microbatches than stages": (4, Pipeline1F1B(4, 2), {}),
    "1f1b, repeats and a rest": (7, Pipeline1F1B(2, 2, repeats=3), {}),
    "1f1b, four devices, repeats of stages in twos, and a rest": (
        17,
        Pipeline1F1B(8, 8, repeats=2),
        {"stage": 4},
    ),
    "1f1b beside fsdp and tensor": (
        4,
        Pipeline1F1B(2, 2, repeats=2),
        {"stage": 2, "fsdp": 2, "tensor": 2},
    ),
}


FAST = ("four devices, repeats of stages in twos, and a rest", "1f1b")
SLOW = (
    "beside fsdp and tensor",
    "1f1b, four devices, repeats of stages in twos, and a rest",
)


def cases():
    for name in CASES:
        marks = [] if name in FAST else [pytest.mark.slow]
        if name not in (*FAST, *SLOW):
            marks.append(pytest.mark.exhaustive)
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [*cases()])
def test_all_is_what_layers_in_sequence_give(name):
    layers, pipeline, mesh = CASES[name]
    actual = run(model(pipeline, layers, **mesh), layers)
    assert_equal(actual, in_sequence(layers))


@pytest.mark.slow
def test_the_linen_family_gives_the_same():
    actual = run(model(Pipeline(2, 4, repeats=2), 8, "linen"), 8)
    assert_equal(actual, in_sequence(8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline(4, 4),
        pytest.param(Pipeline1F1B(4, 4), marks=pytest.mark.exhaustive),
    ],
)
def test_what_is_computed_again_changes_nothing(pipeline):
    actual = run(model(pipeline, 4, remat="full", stage=4), 4)
    assert_equal(actual, in_sequence(4))


def compiled(pipeline, layers, rows=ROWS, **mesh):
    made = model(pipeline, layers, remat="full", **mesh)
    given = jax.eval_shape(lambda: variables(layers))
    rows = jax.eval_shape(lambda: packed_tokens(rows, 64) | {"key": KEY})
    return objective(made).lower(given["params"], given["state"], rows).compile()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Pipeline, Pipeline1F1B])
def test_stages_send_nothing_but_permutes(kind):
    program = hlo.read(str(compiled(kind(4, 4, repeats=2), 8, stage=4).as_text()))
    in_loops = [each for each in program.collectives if each.in_loop]
    assert {each.kind for each in in_loops} == {"collective-permute"}


@pytest.mark.slow
def test_activations_of_1f1b_do_not_grow_with_the_number_of_microbatches():
    """But for the rows at entrance and exit and their gradients, which stages share."""

    def temporary(pipeline):
        rows = 4 * pipeline.microbatches
        memory = compiled(pipeline, 4, rows=rows, stage=4).memory_analysis()
        return getattr(memory, "temp_size_in_bytes", 0)

    one, few, many = 4 * 64 * FEATURES * 4, 8, 32
    grown = temporary(Pipeline1F1B(4, many)) - temporary(Pipeline1F1B(4, few))
    assert 0 < grown < 1.1 * (many - few) * 4 * one / 4
    kept = temporary(Pipeline(4, many)) - temporary(Pipeline1F1B(4, many))
    assert kept > 0.6 * (many - few) * one


@pytest.mark.parametrize(
    ("pipeline", "problem"),
    [
        (Pipeline(2, 4), r"stages \(2\) must be a multiple .* 'stage' \(4\)"),
        (Pipeline(4, 6), r"microbatches \(6\) must be a multiple .* 'stage' \(4\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(pipeline, problem):
    with pytest.raises(UserError, match=problem):
        model(pipeline, 4, stage=4).apply(variables(4), **inputs())
