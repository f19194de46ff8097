"""Every mesh axis, alone and with each other one, trains as one device does.

Three steps of gradient descent in float32: losses and gradients differ from those of
one device by rounding alone. Gradients are read off the momentum, which is a sum of
them. To add an axis, give it a line in `SIZES`.

CI runs every axis alone, and one pair. All cases, in about 25 CPU-minutes:

    pytest tests/sharding/test_axes.py -m "slow or not slow"
"""

import functools
import itertools

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.graph.select import makes
from maxfdl.layers.latent import LatentAttention
from maxfdl.mutations import mesh, pipeline, router_losses, to_linen, to_nnx, use_sgd
from maxfdl.ops.state import StateDeclaration
from maxfdl.train.program import Program
from tests import tiny
from tests.conditioned import conditioned

STEPS, ROWS, LENGTH = 3, 8, 32
TOLERANCE = 1e-5
SIZES = {"data": 4, "fsdp": 4, "context": 4, "tensor": 2, "expert": 4, "stage": 2}
"""Devices along an axis that is alone or the first of two; the second has 2."""
NETWORKS = {
    "dense": "llama2",
    "latent attention, experts": "deepseek_v3",
    "sliding window, sinks": "gpt_oss",
    "delta net": "qwen3_next",
}
MESHES = [{axis: size} for axis, size in SIZES.items()] + [
    {first: SIZES[first], second: 2}
    for first, second in itertools.combinations(SIZES, 2)
]
FAST = [("dense", "fsdp 4, tensor 2")]


def name_of(axes):
    return ", ".join(f"{axis} {size}" for axis, size in axes.items())


def cases():
    """Yields network, mesh and family of all cases.

    Every axis alone has one network and family in the slow part, in turns; the others
    are exhaustive.
    """
    for m, axes in enumerate(MESHES):
        for n, network in enumerate(NETWORKS):
            for f, family in enumerate((to_nnx, to_linen)):
                marks = [pytest.mark.slow, pytest.mark.exhaustive]
                if len(axes) == 1 and (m + 1 - n) % len(NETWORKS) == 0 and (m + f) % 2:
                    marks = [pytest.mark.slow]
                if (network, name_of(axes)) in FAST and family is to_nnx:
                    marks = []
                name = f"{network}-{name_of(axes)}-{family.__name__}"
                yield pytest.param(network, axes, family, id=name, marks=marks)


def experiment(network, axes, repeats, family=to_nnx):
    config = conditioned(zoo_smoke.experiment(NETWORKS[network]))
    config.batch_size, config.sequence_length = ROWS, LENGTH
    for stack in config.model.decoder.stacks:
        stack.repeats = repeats
        stack.layers = [stack.layers[0], *stack.layers[1:][-1:]]
        for layer in stack.layers:
            if makes(layer.attention, LatentAttention):
                layer.attention.latent_dim = 16  # which two axes can cut into 8
    config.optimizer.schedule.peak, config.optimizer.schedule.warmup_steps = 0.1, 0
    config = use_sgd(config, momentum=0.9)
    if network != "dense":
        config = router_losses(config, batch_balance=1e-2, z=1e-3)
    if "stage" in axes:
        config = pipeline(config, stages=axes["stage"], microbatches=2)
    return family(mesh(config, **axes))


@functools.cache
def weights(network, repeats):
    model = graph.build(experiment(network, {}, repeats)).make_model()
    return jax.device_get(tiny.weights(model))


def trained(network, axes, repeats, family=to_nnx):
    """Returns the loss of each step, and the momentum after the last."""
    made = graph.build(experiment(network, axes, repeats, family))
    devices = jax.devices()[: int(np.prod([*axes.values()], dtype=int))]
    trainer = made.make_trainer(made.make_sharding(devices))
    program = Program(trainer, ROWS, LENGTH)
    state = jax.tree.map(StateDeclaration.first, trainer.model.state())
    state = program.start_from({"params": weights(network, repeats), "state": state})
    step = program.compile_step().run
    batches = iter(made.make_batches(made.make_data(trainer.model)))
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, program.place(next(batches)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state["optimizer"])


@functools.cache
def on_one_device(network, repeats):
    return trained(network, {}, repeats)


def errors(found, expected):
    """Returns by path the L2 norm of each difference, over that of what is expected.

    Some gradients are 0 but for rounding, such as that of a bias which all keys share.
    So the norm of a leaf counts as at least a hundredth of that of all leaves.
    """
    least = 1e-2 * np.linalg.norm(
        [np.linalg.norm(x) for x in jax.tree.leaves(expected)]
    )
    return {
        jax.tree_util.keystr(path): np.linalg.norm(a - b)
        / max(np.linalg.norm(b), least)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(found),
            jax.tree.leaves(expected),
            strict=True,
        )
    }


@pytest.mark.parametrize("network, axes, family", [*cases()])
def test_losses_and_gradients_are_those_of_one_device(network, axes, family):
    repeats = axes.get("stage", 1)  # a stage needs a repeat of each stack
    losses, momentum = trained(network, axes, repeats, family)
    expected_losses, expected = on_one_device(network, repeats)
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE)
    found = errors(momentum, expected)
    assert not {path: e for path, e in found.items() if not e <= TOLERANCE}
