"""A stack: a cycle of layers repeated, whose state and side results are values.

The layer here keeps a running mean of what it saw, adds it to its output, and emits
the largest value: in both families, run as a loop or not, it must do the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as flax_linen

from maxfdl.layers import nnx
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.layers.linen.module import param as linen_param
from maxfdl.layers.linen.module import state as linen_state
from maxfdl.layers.nnx.module import Module as NnxModule
from maxfdl.layers.nnx.module import param as nnx_param
from maxfdl.layers.nnx.module import state as nnx_state
from maxfdl.layers.parameter import Parameter
from maxfdl.layers.sinks import SinkKey
from maxfdl.ops.initializers import Normal
from maxfdl.ops.state import StateDeclaration
from tests.layers.families import (
    FAMILIES,
    FEATURES,
    Case,
    assert_same_bits,
    decoder_layer,
    on_vectors,
    packed_tokens,
    stack,
    value_and_gradients,
)

REPEATS = 3
KEY = jax.random.key(3)
RUNS = {
    "scan": (Scan(), "none"),
    "scan, two a trip": (Scan(unroll=2), "none"),
    "unroll": (Unroll(), "none"),
    "scan, remat full": (Scan(), "full"),
    "unroll, remat full": (Unroll(), "full"),
    "unroll, remat dots": (Unroll(), "dots"),
    "scan, remat dots_no_batch": (Scan(), "dots_no_batch"),
    "scan, remat attention_out": (Scan(), "attention_out"),
}


def scale_of(features):
    return Parameter((features,), ("norm",), Normal(1.0), "scale")


def mean_of(features):
    return StateDeclaration((features,), ("norm",), merge="last")


def remember(mean, x):
    """Returns the new running mean."""
    return 0.5 * mean + 0.5 * jnp.mean(x, axis=(0, 1))


class NnxMemory(NnxModule):
    def __init__(self, *, features, rngs):
        self.scale = nnx_param(scale_of(features), rngs)
        self.mean = nnx_state(mean_of(features))

    def __call__(self, x, context):
        context.emit("peak", jnp.max(jnp.abs(x)))
        self.mean[...] = remember(self.mean[...], x)
        return jnp.tanh(x) * self.scale[...] + self.mean[...]


class LinenMemory(LinenModule, kw_only=True):
    features: int

    @flax_linen.compact
    def __call__(self, x, context):
        scale = linen_param(self, "scale", scale_of(self.features))
        mean = linen_state(self, "mean", mean_of(self.features))
        context.emit("peak", jnp.max(jnp.abs(x)))
        mean.value = remember(mean.value, x)
        return jnp.tanh(x) * scale + mean.value


MEMORY = {"nnx": NnxMemory, "linen": LinenMemory}


def model(family, run="scan", layers=("memory", "memory")):
    """A stack of two layers with state, or of layers with dropout."""
    execution, remat = RUNS[run]
    makers = {
        "memory": MEMORY[family],
        "decoder": decoder_layer(FAMILIES[family], dropout=0.2),
    }
    factory = functools.partial(
        stack,
        execution=execution,
        remat=remat,
        repeats=REPEATS,
    )
    cycle = [makers[name] for name in layers]
    case = Case(lambda f: factory(f, *cycle), {"features": FEATURES}, on_vectors)
    return case.model(family)


def three_steps(model, variables):
    """Returns outputs, state, sinks and gradients of three calls in a row."""
    seen = []
    for i in range(3):
        inputs = packed_tokens()
        inputs["tokens"] = (inputs["tokens"] + i) % 32
        (hidden, state, sinks), grads = value_and_gradients(model, variables, **inputs)
        variables = {**variables, "state": state}
        seen.append((hidden, state, sinks, grads))
    return seen


@pytest.fixture(scope="module")
def variables():
    return model("nnx").init(KEY)


@pytest.fixture(scope="module")
def expected(variables):
    return three_steps(model("nnx"), variables)


def test_both_families_declare_the_same_state(variables):
    shapes = {"mean": (REPEATS, FEATURES)}
    expected = {"layer": {"layers_0": shapes, "layers_1": shapes}}
    for family in FAMILIES:
        state = model(family).init(KEY)["state"]
        assert jax.tree.map(jnp.shape, state) == expected
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("run", RUNS)
def test_state_and_sinks_are_the_same_in_both_families(run, variables, expected):
    ours, theirs = (three_steps(model(f, run), variables) for f in FAMILIES)
    assert_same_bits(ours, theirs)
    for one, other in zip(ours, expected, strict=True):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=2e-6), one, other
        )


def test_state_is_threaded_through_the_repeats_in_order(variables, expected):
    """Against the same layers called one by one, with their slices of the arrays."""
    hidden, state, sinks, _ = expected[0]
    table = variables["params"]["embedding"]["table"]
    x = table[packed_tokens()["tokens"]]
    for i in range(REPEATS):
        for name in ("layers_0", "layers_1"):
            peak = sinks[SinkKey(("layer", name), "peak")][i]
            np.testing.assert_allclose(peak, jnp.max(jnp.abs(x)), rtol=1e-6)
            mean = remember(jnp.zeros(FEATURES), x)
            np.testing.assert_allclose(state["layer"][name]["mean"][i], mean, atol=1e-6)
            scale = variables["params"]["layer"][name]["scale"][i]
            x = jnp.tanh(x) * scale + mean
    np.testing.assert_allclose(hidden, x, atol=2e-6)


def test_sinks_come_out_stacked_under_the_path_of_their_layer(expected):
    _, _, sinks, _ = expected[0]
    shapes = {key: value.shape for key, value in sinks.items()}
    keys = [SinkKey(("layer", name), "peak") for name in ("layers_0", "layers_1")]
    assert shapes == dict.fromkeys(keys, (REPEATS,))


@pytest.mark.slow
def test_dropout_is_the_same_however_the_stack_runs():
    weights = model("nnx", layers=["decoder"]).init(KEY)

    def run(name):
        inputs = packed_tokens() | {"key": KEY}
        ours, theirs = (
            value_and_gradients(model(f, name, ["decoder"]), weights, **inputs)
            for f in FAMILIES
        )
        assert_same_bits(ours, theirs)
        return ours[0][0]

    np.testing.assert_allclose(run("unroll, remat full"), run("scan"), atol=5e-6)


def test_each_repeat_has_weights_of_its_own():
    params = model("nnx", layers=["decoder"]).init(KEY)["params"]
    kernels = params["layer"]["layers_0"]["mlp"]["up"]["kernel"]
    assert kernels.shape[0] == REPEATS
    assert np.any(kernels[0] != kernels[1]) and np.any(kernels[1] != kernels[2])


class NormAndDropout(NnxModule):
    def __init__(self, *, features, rngs):
        self.norm = nnx.RMSNorm(features=features, rngs=rngs)
        self.dropout = nnx.Dropout(rate=0.25, rngs=rngs)

    def __call__(self, x, context):
        return self.dropout(self.norm(x, context), context)


def test_each_repeat_drops_other_elements():
    factory = functools.partial(stack, nnx, NormAndDropout, repeats=REPEATS)
    case = Case(lambda _: factory(), {"features": FEATURES}, on_vectors)
    made = case.model("nnx")
    hidden = made.apply(made.init(KEY), **packed_tokens(), key=KEY).hidden
    # With one mask for all repeats 0.75 would stay, and not 0.75 ** 3 = 0.42.
    assert 0.3 < np.mean(hidden != 0) < 0.55


def test_an_unrolled_program_has_no_loop_and_a_scanned_one_has():
    def text(run):
        inputs = packed_tokens()
        made = model("nnx", run)
        return str(jax.make_jaxpr(lambda v: made.apply(v, **inputs))(made.init(KEY)))

    assert "scan[" in text("scan")
    assert "scan[" not in text("unroll")
    assert "remat" not in text("unroll")
    assert "remat" in text("unroll, remat full")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sink_may_be_filled_once(family):
    def twice(layer, tokens, embedding, context):
        x = on_vectors(layer, tokens, embedding, context)
        return layer(x, context.at("layer"))

    made = Case(lambda f: MEMORY[family], {"features": FEATURES}, twice).model(family)
    with pytest.raises(AssertionError, match="layer/peak was filled twice"):
        made.apply(made.init(KEY), **packed_tokens())
