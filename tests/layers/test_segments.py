"""Layers at the ends of a decoder whose products are other ones.

The oracle runs four layers by hand, each with the product that it must have.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.execution import Repeats, Scan, Unroll
from maxfdl.layers.pipeline import Pipeline
from maxfdl.layers.segments import segments_of
from maxfdl.ops.activation import activate
from maxfdl.ops.dot import Dot
from maxfdl.ops.fp8_recipes import Fp8Current, Fp8Delayed
from maxfdl.ops.product import Depth, Ends
from maxfdl.ops.quantized_dot import QuantizedDot
from tests.layers.families import (
    FEATURES,
    Case,
    assert_same_bits,
    linear,
    on_vectors,
    packed_tokens,
    stack,
)

FP8 = QuantizedDot(Fp8Delayed(history=2))
ENDS = Ends(first=1, last=1)
STACKS = {"one": [(1, 4)], "of a cycle of two": [(2, 2)], "two": [(1, 1), (1, 3)]}
"""Length of the cycle and repeats of each stack."""


def model(family, stacks, dot, **how):
    def decoder(family):
        made_by = functools.partial(linear(family), dot=dot)
        projections = dict.fromkeys(("up", "down"), made_by)
        mlp = functools.partial(family.Mlp, **projections, hidden=24, activation="silu")
        made = [
            stack(family, *[mlp] * cycle, repeats=repeats, **how)
            for cycle, repeats in STACKS[stacks]
        ]
        return functools.partial(family.Decoder, stacks=made)

    return Case(decoder, {"features": FEATURES}, on_vectors).model(family)


def ending(dot, **how):
    return QuantizedDot(dot.recipe, ends=ENDS, **how)


@functools.cache
def variables(stacks):
    """Weights, and histories of layers that have run."""
    drawn = model("nnx", stacks, FP8).init(jax.random.key(3))
    return drawn | {"state": jax.tree.map(lambda x: x + 2.0, drawn["state"])}


def each_layer(stacks, tree):
    """Returns the arrays of each layer, in the order in which they run."""
    return [
        jax.tree.map(
            lambda x, repeat=repeat: x[repeat],
            tree["layer"][f"stacks_{i}"][f"layers_{layer}"],
        )
        for i, (cycle, repeats) in enumerate(STACKS[stacks])
        for repeat in range(repeats)
        for layer in range(cycle)
    ]


def by_hand(stacks, products, params, state):
    """Returns the output of the layers, and the state that each leaves."""
    x = params["embedding"]["table"][packed_tokens()["tokens"]]
    of_layers = (each_layer(stacks, tree) for tree in (params, state))
    left = []
    for product, weights, kept in zip(products, *of_layers, strict=True):
        for name in ("up", "down"):
            cells = {key.removeprefix("dot_"): v for key, v in kept[name].items()}
            x, new = product(x, weights[name]["kernel"], cells)
            kept[name] |= {f"dot_{key}": value for key, value in new.items()}
            x = activate("silu", x) if name == "up" else x
        left.append(kept)
    return x, left


def results(run, stacks):
    """Returns output, state, and the gradients of parameters and of state, by layer."""

    def objective(params, state):
        x, left = run(params, state)
        weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
        return jnp.sum(x * weights), (x, left)

    gradients = jax.jit(jax.grad(objective, (0, 1), has_aux=True))
    (dparams, dstate), (x, left) = gradients(*variables(stacks).values())
    return x, left, each_layer(stacks, dparams), each_layer(stacks, dstate)


@functools.cache
def expected(stacks, ends=Dot()):  # noqa: B008 (it is frozen)
    products = (ends, FP8, FP8, ends)
    return results(functools.partial(by_hand, stacks, products), stacks)


def of_model(stacks, *args, **how):
    made = model(*args, **how)

    def run(params, state):
        out = made.apply({"params": params, "state": state}, **packed_tokens())
        return out.hidden, each_layer(stacks, out.state)

    return results(run, stacks)


def assert_close(actual, wanted):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-6), actual, wanted
    )


@pytest.mark.parametrize(
    "stacks",
    [
        pytest.param(
            name, marks=() if name == "of a cycle of two" else pytest.mark.slow
        )
        for name in STACKS
    ],
)
def test_each_layer_has_the_product_of_its_place_in_both_families(stacks):
    nnx, linen = (of_model(stacks, f, stacks, ending(FP8)) for f in ("nnx", "linen"))
    assert_same_bits(nnx, linen)
    assert_close(nnx, expected(stacks))
    for unchanged in (nnx[1][0], nnx[1][3]):  # the state of layers that keep none
        assert all(np.all(leaf == 2.0) for leaf in jax.tree.leaves(unchanged))


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(dict(execution=Unroll()), marks=pytest.mark.slow),
        pytest.param(dict(execution=Scan(), remat="full"), marks=pytest.mark.slow),
        dict(execution=Unroll(), remat="full"),
    ],
    ids=["unrolled", "remat", "unrolled remat"],
)
def test_nothing_changes_however_the_layers_run(how):
    one = of_model("one", "nnx", "one", ending(FP8), **how)
    assert_same_bits(one, of_model("one", "nnx", "one", ending(FP8)))


def test_a_pipeline_runs_what_is_between_the_ends():
    stages = Pipeline(stages=2, microbatches=2)
    found = of_model("one", "nnx", "one", ending(FP8), execution=stages)
    assert_close(found, expected("one"))


@pytest.mark.slow
def test_the_ends_may_have_a_recipe_of_their_own():
    dot = ending(FP8, ends_recipe=Fp8Current())
    found = of_model("one", "linen", "one", dot)
    assert_close(found, expected("one", QuantizedDot(Fp8Current())))


def test_layers_with_arrays_of_their_own_have_the_same_products():
    made = model("nnx", "one", ending(FP8))
    inputs = packed_tokens()
    apply = jax.jit(lambda given: made.apply(given, **inputs))
    whole = variables("one")
    out, apart = apply(whole), apply(made.apart(whole))
    np.testing.assert_allclose(apart.hidden, out.hidden, atol=1e-6)
    stacked = [jnp.stack(leaf) for leaf in repeats_in(apart.state)]
    assert_close(stacked, jax.tree.leaves(out.state))


def repeats_in(tree):
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Repeats))


def test_a_stack_runs_as_one_loop_unless_its_products_change():
    def loops(dot):
        run, given = model("nnx", "one", dot).apply, variables("one")
        return str(jax.make_jaxpr(lambda v: run(v, **packed_tokens()))(given)).count(
            "scan["
        )

    assert loops(FP8) == loops(Dot()) == 1
    assert loops(ending(FP8)) == 3


@pytest.mark.parametrize(
    ("repeats", "cycle", "layers", "ends", "runs"),
    [
        (4, 1, range(4), [Ends(1, 1)], [(0, 1), (1, 3), (3, 4)]),
        (4, 1, range(4), [Ends(1, 0), Ends(0, 2)], [(0, 1), (1, 2), (2, 4)]),
        (4, 1, range(4), [], [(0, 4)]),
        # Of a cycle of three, the first repeat has a layer of either kind.
        (4, 3, range(12), [Ends(4, 3)], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        # What comes before it, and after it, counts.
        (4, 1, range(2, 6), [Ends(3, 2)], [(0, 1), (1, 4)]),
        (4, 1, range(2, 6), [Ends(2, 1)], [(0, 4)]),
    ],
)
def test_repeats_that_compute_the_same_run_together(repeats, cycle, layers, ends, runs):
    depth = Depth(layers, total=8 if layers.start else layers.stop)
    found = segments_of(repeats, cycle, depth, ends)
    assert [(each.repeats.start, each.repeats.stop) for each in found] == runs
    for segment in found:
        for i in range(cycle):
            for each in ends:
                each.hold(segment.depth.of_cycle(i, cycle))  # all or none of them


def test_layers_outside_of_a_decoder_are_at_no_end():
    (segment,) = segments_of(3, 1, None, [Ends(1, 1)])
    assert segment.depth is None and not Ends(1, 1).hold(None)
