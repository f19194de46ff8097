"""State in the memory of the host: the same numbers, and less on the device."""

import copy
import functools

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from maxfdl import graph
from maxfdl.mutations import (
    average_weights,
    gradient_accumulation,
    learning_rate_by_role,
    mesh,
    offload_optimizer,
    offload_parameters,
    param_dtype,
    remat,
    to_linen,
    unroll_layers,
    use_adafactor,
    use_muonclip,
    use_schedule_free,
    weight_decay,
    zero1,
)
from maxfdl.train.program import Program
from tests import tiny

# MuonClip clips here, and a role is frozen.
CASES = {
    "adamw": (),
    "muonclip": (functools.partial(use_muonclip, threshold=0.01), average_weights),
    "adafactor": (use_adafactor, functools.partial(weight_decay, rate=0.3)),
    "schedule_free": (
        use_schedule_free,
        functools.partial(learning_rate_by_role, embedding=0.0, scale=2.0),
    ),
    "replicas": (
        functools.partial(mesh, data=2, fsdp=2, tensor=1),
        zero1,
        functools.partial(gradient_accumulation, steps=2),
        to_linen,
    ),
    "unrolled": (unroll_layers,),
    # Gradients are float32, moments bfloat16, and stay so.
    "bfloat16": (
        functools.partial(param_dtype, dtype="bfloat16"),
        functools.partial(gradient_accumulation, steps=2),
    ),
}
FAST = ("replicas",)
offloads = pytest.mark.parametrize(
    "offload",
    [
        (offload_optimizer, offload_parameters),
        pytest.param((offload_optimizer,), marks=pytest.mark.slow),
        pytest.param((offload_parameters,), marks=pytest.mark.slow),
    ],
    ids=["both", "optimizer", "parameters"],
)


@functools.cache
def on_device(case):
    return trained(CASES[case])


def trained(mutations):
    devices = 4 if zero1 in mutations else 1
    return tiny.train(tiny.experiment(*mutations), 3, devices)


def kinds(tree):
    return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)}


@offloads
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in FAST else pytest.mark.slow)
        for case in CASES
    ],
)
def test_training_from_the_host_gives_the_same_numbers(case, offload):
    losses, state = on_device(case)
    offloaded, other = trained((*CASES[case], *offload))
    np.testing.assert_allclose(offloaded, losses, rtol=1e-6)
    # A first step of Adam is a sign, so that gradients of 1e-8 show their rounding.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, jax.device_get(other), jax.device_get(state))
    if offload_parameters in offload:
        assert kinds(other["params"]) == {"pinned_host"}
    if case == "adamw" and offload_optimizer in offload:
        assert kinds((other["optimizer"][1].mu, other["optimizer"][1].nu)) == {
            "pinned_host"
        }


def test_a_step_that_does_not_count_leaves_what_is_on_the_host():
    config = tiny.experiment(offload_optimizer, offload_parameters, average_weights)
    program = tiny.program(config)
    run, state = program.compile_step().run, tiny.begin(program)
    state, _ = run(state, program.place(tiny.batch(0)))
    before = jax.device_get(state)
    broken = tiny.batch(1) | {
        "weights": np.full((tiny.ROWS, tiny.LENGTH), np.nan, np.float32)
    }
    state, metrics = run(state, program.place(broken))
    assert metrics["skipped"] == 1
    assert_same(state, before)
    # Nor does one that finds a parameter which is not finite, and not looked up.
    variables = copy.deepcopy({name: before[name] for name in ("params", "state")})
    unseen = np.setdiff1d(np.arange(tiny.VOCAB), tiny.batch(0)["tokens"])[0]
    variables["params"]["embedding"]["table"][unseen, 0] = np.inf
    state = program.start_from(variables)
    before = jax.device_get(state)
    state, metrics = run(state, program.place(tiny.batch(0)))
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] == 1
    assert_same(state, before)


def assert_same(state, before):
    for name in ("params", "optimizer", "updates"):
        jax.tree.map(
            np.testing.assert_array_equal, jax.device_get(state[name]), before[name]
        )


@pytest.mark.slow
@pytest.mark.parametrize("chips", [pytest.param(1, marks=pytest.mark.exhaustive), 4])
def test_on_a_tpu_one_layer_at_a_time_is_on_the_device(monkeypatch, chips):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")

    def memory(*offload):
        config = tiny.experiment(
            remat,
            functools.partial(mesh, fsdp=chips),
            *offload,
            features=512,
            mlp=2048,
            num_layers=8,
            num_heads=4,
            num_kv_heads=4,
            head_dim=128,
        )
        made = graph.build(config)
        sharding = made.make_sharding(topology.devices[:chips])
        program = Program(made.make_trainer(sharding), made.batch_size, 128)
        return program.compile_step().run.memory_analysis()

    on_device, optimizer, both = (
        memory(),
        memory(offload_optimizer),
        memory(offload_optimizer, offload_parameters),
    )
    state = on_device.argument_size_in_bytes
    assert optimizer.host_argument_size_in_bytes == pytest.approx(
        state * 2 / 3, rel=0.02
    )
    assert optimizer.argument_size_in_bytes == pytest.approx(state / 3, rel=0.02)
    # Weights, gradient and moments of one layer of the eight; all are 4 / 3 of `state`.
    one_layer = state / 3 * 4 / 8
    assert optimizer.temp_size_in_bytes <= on_device.temp_size_in_bytes + one_layer
    assert both.host_argument_size_in_bytes == pytest.approx(state, rel=0.02)
    # Gradients stay where they are; on several chips more comes with the weights.
    peak = state + on_device.temp_size_in_bytes
    assert both.argument_size_in_bytes + both.temp_size_in_bytes <= 0.75 * peak
