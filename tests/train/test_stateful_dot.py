"""A matrix product with state: what it remembers is the same however a step runs.

The product here remembers the greatest number of its input and of the gradient of its
output, as a delayed scaling would, and multiplies by a scale, which starts as 1.
"""

import dataclasses
import functools

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl import graph
from maxfdl.checkpoint.checkpointer import Checkpointer
from maxfdl.errors import UserError
from maxfdl.layers import nnx
from maxfdl.mutations import (
    gradient_accumulation,
    mesh,
    remat,
    to_linen,
    unroll_layers,
    vocab_tiling,
)
from maxfdl.ops.dot import Dot, MatrixProduct, leave_gradient
from maxfdl.ops.state import StateDeclaration
from tests import tiny
from tests.layers.families import assert_same_bits


def greatest(before, x):
    return jnp.maximum(before, jnp.max(jnp.abs(x)).astype(before.dtype))


@dataclasses.dataclass(frozen=True)
class WatchedDot(MatrixProduct):
    """The plain product, which remembers what went in and what came back."""

    def declare(self, kernel):
        seen = functools.partial(StateDeclaration, (), (), merge="max")
        scale = StateDeclaration((), (), initial=1.0)
        return {"x": seen(), "dy": seen(backward=True), "scale": scale}

    def __call__(self, x, kernel, state, **kwargs):
        y, _ = Dot()(x, kernel, {}, **kwargs)
        y = leave_gradient(y, state["dy"], lambda dy, before: greatest(before, dy))
        return y * state["scale"], {"x": greatest(state["x"], x)}

    def backward(self, x, kernel, dy, **kwargs):
        return Dot().backward(x, kernel, dy, **kwargs)


def watched(config):
    config = graph.copy(config)
    for linear in graph.nodes_of(config.model, nnx.Linear):
        linear.dot = fdl.Config(WatchedDot)
    return config


CASES = {
    "linen": ([to_linen], 1),
    "unrolled": ([unroll_layers], 1),
    "remat": ([remat], 1),
    "unrolled remat": ([unroll_layers, functools.partial(remat, policy="dots")], 1),
    "accumulated": ([functools.partial(gradient_accumulation, steps=4)], 1),
    "replicas": ([functools.partial(mesh, data=8, fsdp=1)], 8),
    "fsdp": ([functools.partial(mesh, fsdp=8)], 8),
    "linen, accumulated on replicas": (
        [
            to_linen,
            functools.partial(gradient_accumulation, steps=4),
            functools.partial(mesh, data=2, fsdp=1),
        ],
        2,
    ),
    "tiled loss": ([functools.partial(vocab_tiling, num_tiles=2)], 1),
}


@functools.cache
def two_steps(name=None):
    mutations, devices = CASES[name] if name else ([], 1)
    config = tiny.experiment(watched, *mutations, num_layers=2)
    losses, state = tiny.train(config, 2, devices)
    return losses, jax.device_get(state)


SLOW = ("unrolled remat", "fsdp", "tiled loss", "linen")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in CASES
    ],
)
def test_a_product_remembers_the_same_however_the_step_runs(name):
    (losses, state), (expected_losses, expected) = two_steps(name), two_steps()
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    if name == "linen":
        assert_same_bits(state, expected)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4),
        state["state"],
        expected["state"],
    )


def test_a_product_that_multiplies_by_its_first_scale_changes_no_loss():
    plain, _ = tiny.train(tiny.experiment(num_layers=2), 2)
    assert two_steps()[0] == plain


def test_what_it_remembers_is_that_of_each_layer():
    state = two_steps()[1]["state"]["decoder"]["stacks_0"]["layers_0"]
    attention = state["attention"]
    seen = [attention[name]["dot_x"] for name in ("query", "key", "value")]
    assert all(np.array_equal(each, seen[0]) for each in seen)
    assert attention["out"]["dot_x"].shape == (2,)
    leaves = [*attention.values(), *state["mlp"].values()]
    assert len(leaves) == 7
    for each in leaves:
        assert np.all(each["dot_x"] > 0) and np.all(each["dot_dy"] > 0)
        assert each["dot_x"][0] != each["dot_x"][1]
        assert each["dot_dy"][0] != each["dot_dy"][1]
        np.testing.assert_array_equal(each["dot_scale"], np.ones(2))


class Position:
    """A place in the data."""

    def get_state(self):
        return {"step": 2}

    def set_state(self, state):
        assert state == {"step": 2}


def test_what_it_remembers_is_saved_and_restored_and_goes_on(tmp_path):
    made = tiny.program(tiny.experiment(watched, num_layers=2))
    checkpointer = Checkpointer(directory=tmp_path)
    _, state = two_steps()
    saved = jax.device_put(state, made.trainer.state_shardings())
    checkpointer.save(2, saved, Position(), "{}")
    checkpointer.wait()
    restored = checkpointer.restore(2, made.abstract_state(), Position())
    checkpointer.close()
    assert_same_bits(restored, state)


def test_a_head_whose_product_keeps_state_is_refused():
    config = watched(tiny.experiment(num_layers=1))
    config.model.head.dot = fdl.Config(WatchedDot)
    model, tokens = tiny.program(config).trainer.model, jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(UserError, match="Head dot .WatchedDot. must be a product that"):
        jax.eval_shape(model.apply, model.init(jax.random.key(0)), tokens)


def test_the_backward_pass_leaves_what_it_sees_for_the_value_before():
    def loss(y, before):
        return jnp.sum(jnp.array([1.0, -3.0]) * leave_gradient(y, before, greatest_of))

    def greatest_of(dy, before):
        return greatest(before, dy)

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    for before, after in ((0.0, 3.0), (5.0, 5.0)):
        dy, left = gradients(jnp.zeros(2), jnp.asarray(before))
        np.testing.assert_array_equal(dy, [1.0, -3.0])
        assert left == after
