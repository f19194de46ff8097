"""Experts on meshes: each device sorts its own tokens and sends them to the experts."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from maxfdl.errors import UserError
from maxfdl.ops.cost import count_flops
from maxfdl.ops.experts import Capacity, Dropless
from maxfdl.ops.grouped_dot import GroupedDot
from maxfdl.report import hlo
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.rules import AxisRules
from maxfdl.sharding.sharding import Sharding
from tests.layers.families import FEATURES, packed_tokens, value_and_gradients
from tests.layers.test_moe import (
    BLOCKS,
    DROPPED,
    EXPERTS,
    HIDDEN,
    KEY,
    LOAD,
    assert_close,
    model_of,
)

ROWS = 8
WIDE = AxisRules(expert_mlp=())
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def sharding_on(rules=WIDE, devices=None, fsdp=1, **axes: Any):
    return Sharding(MeshShape(fsdp=fsdp, **axes).build(devices), rules)


@functools.cache
def weights(kind):
    return jax.jit(model_of("nnx", **BLOCKS[kind]).init)(KEY)


@functools.cache
def on_one_device(kind, dispatch):
    model = model_of("nnx", **BLOCKS[kind], dispatch=dispatch)
    return value_and_gradients(model, weights(kind), **packed_tokens(rows=ROWS))


def on_mesh(kind, dispatch, sharding):
    """Returns value and gradients of a block on eight devices."""
    model = model_of("nnx", **BLOCKS[kind], dispatch=dispatch)
    put = lambda value, p: jax.device_put(value, sharding.named(p.full_axes))  # noqa: E731
    params = jax.tree.map(put, weights(kind)["params"], model.parameters())
    state = jax.device_put(weights(kind)["state"], sharding.named(()))
    model.sharding = sharding
    given = {"params": params, "state": state}
    return value_and_gradients(model, given, **packed_tokens(rows=ROWS))


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("deepseek_v3", dict(expert=2, stage=2, fsdp=2)),
        ("gpt_oss", dict(expert=2, context=2, tensor=2)),
        slow("llama4", dict(expert=2, data=4)),
        slow("qwen3_next", dict(expert=8)),
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(kind, axes):
    actual = on_mesh(kind, Dropless(), sharding_on(AxisRules(), **axes))
    jax.tree.map(assert_close, actual, on_one_device(kind, Dropless()))


@pytest.mark.parametrize(
    ("experts", "axes"),
    [
        (("fsdp", "tensor"), dict(fsdp=4, tensor=2)),
        slow(("data",), dict(data=4, fsdp=2)),
        slow(("tensor",), dict(fsdp=2, tensor=4)),
    ],
    ids=str,
)
def test_experts_may_lie_along_any_axis_whether_or_not_it_cuts_tokens(experts, axes):
    rules = AxisRules(experts=experts, expert_mlp=())
    actual = on_mesh("llama4", Dropless(), sharding_on(rules, **axes))
    jax.tree.map(assert_close, actual, on_one_device("llama4", Dropless()))


@pytest.mark.parametrize(
    "axes",
    [dict(expert=2, context=2, fsdp=2), slow(dict(data=2, fsdp=4))],
    ids=str,
)
def test_a_capacity_drops_on_a_mesh_what_it_drops_on_one_device(axes):
    actual = on_mesh("mixtral", Capacity(0.7), sharding_on(**axes))
    expected = on_one_device("mixtral", Capacity(0.7))
    assert expected[0][2][DROPPED].value > 0
    jax.tree.map(assert_close, actual, expected)


def test_what_finds_no_room_is_dropped_and_counted():
    (_, _, sinks), _ = on_mesh("mixtral", Dropless(0.5), sharding_on(expert=4, fsdp=2))
    # Each device has room for half of what an even spread brings to its experts.
    chosen, dropped = sinks[LOAD].counts.value.sum(), sinks[DROPPED].value
    assert chosen / 2 <= dropped < chosen


@pytest.mark.parametrize("dispatch", [Dropless(), Capacity(1.25)], ids=str)
def test_flops_are_those_of_the_tokens_whatever_a_device_has_room_for(dispatch):
    def flops(dispatch, sharding=None):
        model = model_of("nnx", **BLOCKS["mixtral"], dispatch=dispatch)
        model.sharding = sharding
        inputs = packed_tokens(rows=ROWS)
        run = lambda variables: model.apply(variables, **inputs).hidden  # noqa: E731
        return count_flops(run, weights("mixtral"))

    alone = flops(Dropless())
    for axes in (dict(expert=4, fsdp=2), dict(fsdp=4, tensor=2), dict(data=8)):
        assert flops(dispatch, sharding_on(AxisRules(), **axes)) == alone


def test_experts_that_an_axis_cannot_share_out_are_refused():
    kernel = model_of("nnx", **BLOCKS["mixtral"]).parameters()
    declared = kernel["layer"]["experts"]["up"]["kernel"]
    sharding = sharding_on(devices=jax.devices()[:2], expert=2)
    sharding.check("experts/up/kernel", declared.shape, declared.axes)
    with pytest.raises(UserError, match=r"'experts' of size 7 .* 2 by mesh axis exper"):
        sharding.check("experts/up/kernel", (7, 16, 4), declared.axes)


@pytest.fixture
def chips(monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    # Else a second process of pytest-xdist finds the library taken.
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


def compiled_for(chips, kind):
    """Returns the program of a block with gradients for TPUs, one expert axis."""
    sharding = sharding_on(devices=chips, expert=len(chips))
    model = model_of("nnx", **BLOCKS[kind], dot=GroupedDot("ragged"))
    fresh = jax.eval_shape(model.init, KEY)

    def placed(value, spec):
        place = NamedSharding(sharding.mesh, spec)
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)

    put = lambda value, p: placed(value, sharding.spec(p.full_axes))  # noqa: E731
    params = jax.tree.map(put, fresh["params"], model.parameters())
    state = jax.tree.map(lambda v: placed(v, PartitionSpec()), fresh["state"])
    rows = PartitionSpec("expert")
    inputs = jax.tree.map(lambda v: placed(v, rows), packed_tokens(rows=ROWS))
    model.sharding = sharding

    def objective(params, state, inputs):
        out = model.apply({"params": params, "state": state}, **inputs)
        return jnp.sum(jnp.square(out.hidden))

    lowered = jax.jit(jax.grad(objective)).lower(params, state, inputs)
    options: dict[str, str | bool] = {"xla_tpu_enable_async_ragged_all_to_all": True}
    return lowered.compile(compiler_options=options).as_text() or ""


@pytest.mark.slow
def test_tpus_send_tokens_four_times_and_no_weights_beside_the_shared_expert(chips):
    """To the experts and back, and so do gradients: ways that run in the background."""
    text, n = compiled_for(chips, "deepseek_v3"), len(chips)
    collectives = hlo.read(text).collectives
    sent = [c.payload for c in collectives if c.kind == "ragged-all-to-all"]
    copies = 3 * packed_tokens(rows=ROWS)["tokens"].size // n
    width = 128  # numbers that a TPU fills a row up to
    assert sent == [copies * width * 4] * 4
    kernels = rf"\[({EXPERTS},{FEATURES},{HIDDEN}|{EXPERTS},{HIDDEN},{FEATURES})\]"
    assert not re.search(rf"{kernels}\S* all-gather", text)
    assert not re.search(
        rf"s32\[{ROWS},\S* all-gather", text
    )  # choices are counted here
    # Between the first start and its end stand the products of the shared expert.
    first = text.index("ragged-all-to-all-start(")
    between = text[first : text.index("ragged-all-to-all-done(", first)]
    assert "/shared/" in between or "convolution" in between
