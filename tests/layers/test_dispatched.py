"""Experts on meshes: each device sorts its own tokens and sends them to the experts."""

import functools

import jax
import numpy as np
import pytest

from maxfdl.ops.experts import Capacity, Dropless
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.layers.families import packed_tokens, value_and_gradients
from tests.layers.test_moe import BLOCKS, DROPPED, KEY, assert_close, model_of

MESHES = {
    "expert": dict(expert=8, fsdp=1),
    "expert and fsdp": dict(expert=4, fsdp=2),
    "expert and tensor": dict(expert=4, tensor=2, fsdp=1),
    "expert and context": dict(expert=2, context=2, fsdp=2),
    "expert and data": dict(expert=2, data=4, fsdp=1),
}
RULES = {
    "data": (dict(data=4, fsdp=2), AxisRules(experts=("data",))),
    "fsdp": (dict(data=2, fsdp=4), AxisRules(experts=("fsdp",))),
    "tensor, which cuts no tokens": (
        dict(tensor=4, fsdp=2),
        AxisRules(experts=("tensor",), expert_mlp=()),
    ),
    "fsdp and tensor": (
        dict(tensor=2, fsdp=4),
        AxisRules(experts=("fsdp", "tensor"), expert_mlp=()),
    ),
}


@functools.cache
def weights(kind):
    return jax.jit(model_of("nnx", **BLOCKS[kind]).init)(KEY)


@functools.cache
def on_one_device(kind, dispatch):
    model = model_of("nnx", **BLOCKS[kind], dispatch=dispatch)
    return value_and_gradients(model, weights(kind), **packed_tokens(rows=8))


def on_mesh(kind, dispatch, mesh, rules=None, **parts):
    """Returns value and gradients of a block on eight devices."""
    sharding = Sharding(MeshShape(**mesh).build(), rules or AxisRules())
    model = model_of("nnx", **BLOCKS[kind], dispatch=dispatch, **parts)
    put = lambda value, p: jax.device_put(value, sharding.named(p.full_axes))  # noqa: E731
    params = jax.tree.map(put, weights(kind)["params"], model.parameters())
    state = jax.device_put(weights(kind)["state"], sharding.named(()))
    model.sharding = sharding
    given = {"params": params, "state": state}
    return value_and_gradients(model, given, **packed_tokens(rows=8))


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("kind", ["deepseek_v3", "gpt_oss"])
def test_a_mesh_changes_nothing(kind, name):
    actual = on_mesh(kind, Dropless(), MESHES[name])
    jax.tree.map(assert_close, actual, on_one_device(kind, Dropless()))


@pytest.mark.parametrize("name", RULES)
def test_experts_may_lie_along_any_axis(name):
    actual = on_mesh("llama4", Dropless(), *RULES[name])
    jax.tree.map(assert_close, actual, on_one_device("llama4", Dropless()))


@pytest.mark.parametrize("name", ["expert and fsdp", "expert and context"])
def test_a_capacity_drops_on_a_mesh_what_it_drops_on_one_device(name):
    actual = on_mesh("mixtral", Capacity(0.7), MESHES[name])
    expected = on_one_device("mixtral", Capacity(0.7))
    assert expected[0][2][DROPPED].value > 0
    jax.tree.map(assert_close, actual, expected)


def test_what_finds_no_room_is_dropped_and_counted():
    (_, _, sinks), _ = on_mesh("mixtral", Dropless(0.5), MESHES["expert and fsdp"])
    tokens = packed_tokens(rows=8)["tokens"].size
    assert tokens <= sinks[DROPPED].value < 2 * tokens
    roomy = on_mesh("mixtral", Dropless(4.0), MESHES["expert and fsdp"])
    jax.tree.map(assert_close, roomy, on_one_device("mixtral", Dropless()))
    np.testing.assert_array_equal(roomy[0][2][DROPPED].value, 0)
