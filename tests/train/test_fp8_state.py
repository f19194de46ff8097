"""The histories of FP8 products are the same however a step runs."""

import functools
from collections import Counter

import jax
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.mutations import (
    compute_dtype,
    disable_fp8,
    enable_fp8,
    gradient_accumulation,
    mesh,
    remat,
    to_linen,
    unroll_layers,
)
from tests import tiny
from tests.layers.families import assert_same_bits

STEPS = 2
RECIPES = {
    "current": enable_fp8,
    "channel": functools.partial(enable_fp8, granularity="channel"),
    "delayed": functools.partial(enable_fp8, recipe="delayed", history=4),
    "block": functools.partial(enable_fp8, recipe="block", size=8),
}
SAME = {
    "linen": [to_linen],
    "unrolled": [unroll_layers],
    "remat": [remat],
    "unrolled remat": [unroll_layers, remat],
}
CUT = {
    "accumulated": ([functools.partial(gradient_accumulation, steps=4)], 1),
    "replicas": ([functools.partial(mesh, data=8, fsdp=1)], 8),
    "fsdp": ([functools.partial(mesh, fsdp=8)], 8),
}


@functools.cache
def trained(recipe, *how, steps=STEPS):
    mutations, devices = [RECIPES[recipe]], 1
    for name in how:
        more, devices = (SAME[name], devices) if name in SAME else CUT[name]
        mutations += more
    config = tiny.experiment(*mutations, num_layers=2)
    losses, state = tiny.train(config, steps, devices)
    return losses, jax.device_get(state)


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        pytest.param(recipe, how, marks=() if fast else pytest.mark.slow)
        for recipe in RECIPES
        for how in SAME
        for fast in [(recipe, how) == ("delayed", "unrolled remat")]
    ],
)
def test_however_the_layers_run_nothing_changes_to_the_last_bit(recipe, how):
    (losses, state), (expected_losses, expected) = trained(recipe, how), trained(recipe)
    assert losses == expected_losses
    assert_same_bits(state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("how", CUT)
def test_parts_of_a_batch_leave_the_history_of_the_whole(how):
    """That of activations and kernels to the last bit; gradients pass sums in float32
    (attention, norms, and the first step's update), whose order follows the shapes."""
    state, expected = (trained("delayed", *h, steps=1)[1] for h in ([how], []))
    check = functools.partial(jax.tree_util.tree_map_with_path, assert_same_amax)
    check(state["state"], expected["state"])
    (losses, state), (expected_losses, expected) = (
        trained("delayed", *h) for h in ([how], [])
    )
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, state["state"], expected["state"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "how", "rtol"),
    [
        # Shards of kernels have the scales of the whole; shards of a batch their own.
        ("current", "fsdp", 1e-2),
        ("channel", "fsdp", 1e-6),
        ("block", "fsdp", 1e-6),
        ("current", "replicas", 1e-2),
        ("channel", "accumulated", 1e-2),
        ("block", "replicas", 1e-2),
        ("block", "accumulated", 1e-2),
    ],
)
def test_without_state_a_mesh_or_parts_change_what_their_scales_do(recipe, how, rtol):
    (losses, _), (expected, _) = trained(recipe, how), trained(recipe)
    np.testing.assert_allclose(losses, expected, rtol=rtol)


def assert_same_amax(path, history, expected):
    rtol = 1e-6 if path[-1].key == "dot_dy_amax" else 0
    np.testing.assert_allclose(history, expected, rtol=rtol, atol=0)


def test_each_layer_has_histories_with_what_it_saw_in_the_last_steps():
    state = trained("delayed")[1]["state"]["decoder"]["stacks_0"]["layers_0"]
    leaves = jax.tree.leaves(state)
    assert len(leaves) == 7 * 3
    for history in leaves:
        assert history.shape == (2, 4)
        # The newest is first, the one before it last: see `rolled`.
        assert np.all((history > 0) == [True, False, False, True])
        assert history[0, 0] != history[1, 0]


def bytes_kept(*mutations):
    """Returns the bytes that the backward pass of a network is given, by type."""
    bfloat16 = functools.partial(compute_dtype, dtype="bfloat16")
    config = tiny.experiment(bfloat16, *mutations, num_layers=2)
    model = graph.build(config).make_model()
    tokens = jax.ShapeDtypeStruct((tiny.ROWS, tiny.LENGTH), "int32")

    def kept(variables, tokens):
        def hidden(params):
            return model.apply({**variables, "params": params}, tokens).hidden

        return jax.vjp(hidden, variables["params"])[1]

    variables = jax.eval_shape(model.init, jax.random.key(0))
    found = Counter()
    for leaf in jax.tree.leaves(jax.eval_shape(kept, variables, tokens)):
        found[leaf.dtype.name] += leaf.size * leaf.dtype.itemsize
    return found


def test_products_keep_fp8_in_place_of_what_it_was_made_of():
    plain, fp8 = bytes_kept(), bytes_kept(enable_fp8)
    widths = {"in": 16, "heads": 4 * 8, "mlp": 32}
    kernels = 16 * 8 * (4 + 2 + 2 + 4) + 3 * 16 * 32
    rows = tiny.ROWS * tiny.LENGTH
    factors = 5 * widths["in"] + widths["heads"] + widths["mlp"]
    assert fp8["float8_e4m3fn"] == 2 * (kernels + rows * factors)
    assert fp8["bfloat16"] < plain["bfloat16"]
    # With remat it is the input of each layer, whatever products do.
    assert bytes_kept(remat) == bytes_kept(remat, enable_fp8)


def test_the_policy_dots_keeps_the_results_of_plain_products_too():
    dots = functools.partial(remat, policy="dots_no_batch")
    rows = 2 * tiny.ROWS * tiny.LENGTH  # of two layers
    # Of query, key, value, out, gate and up: that of down is needed in a sum alone.
    outputs = 8 * (4 + 2 + 2) + 16 + 2 * 32
    more = bytes_kept(dots)["bfloat16"] - bytes_kept(remat)["bfloat16"]
    assert more == 2 * rows * outputs


def test_without_fp8_nothing_of_it_is_left():
    config = tiny.experiment(RECIPES["delayed"], disable_fp8)
    assert config == tiny.experiment()
