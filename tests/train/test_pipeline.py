"""Whole models in a pipeline: losses and gradients of one device, on any mesh."""

import functools

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.layers.cache import EmptyCache
from maxfdl.layers.pipeline import Pipeline
from maxfdl.mutations import (
    enable_fp8,
    mesh,
    multi_token_prediction,
    pipeline,
    to_linen,
)
from maxfdl.report import hlo
from maxfdl.train.program import Program
from tests import tiny
from tests.conditioned import conditioned

TOLERANCE = 2e-6
"""Of the norm of all gradients: what sums in another order come to in float32."""


def delayed_fp8(config):
    return enable_fp8(config, recipe="delayed", history=4)


CASES = {
    "experts, delayed FP8": (
        "mixtral",
        [delayed_fp8],
        dict(stages=2, microbatches=4, schedule="1f1b"),
        dict(stage=2, expert=2),
    ),
    "experts, repeats, weights that are held, Linen": (
        "mixtral",
        [to_linen],
        dict(stages=2, microbatches=2, repeats=2, hold_weights=True),
        dict(stage=2, fsdp=2),
    ),
    "cut sequences": (
        "llama2",
        [],
        dict(stages=2, microbatches=2),
        dict(stage=2, context=2),
    ),
    "a cycle of layers and short stacks": (
        "gemma3",
        [conditioned],
        dict(stages=2, microbatches=2, schedule="1f1b"),
        dict(stage=2, data=2, fsdp=2),
    ),
    "latent attention, experts, tokens beyond the next": (
        "deepseek_v3",
        [functools.partial(multi_token_prediction, depth=1)],
        dict(stages=2, microbatches=4),
        dict(stage=2),
    ),
    "linear attention": (
        "qwen3_next",
        [conditioned, to_linen],
        dict(stages=2, microbatches=2),
        dict(stage=2, tensor=2),
    ),
}
FAST = ("experts, delayed FP8",)


def step_of(config, devices=1):
    """Returns the compiled gradients of a batch, and what they are called with."""
    experiment = graph.build(graph.validate(config))
    sharding = experiment.make_sharding(jax.devices()[:devices])
    trainer = experiment.make_trainer(sharding)
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    batches = experiment.make_batches(experiment.make_data(trainer.model))
    state, batch = tiny.begin(program), program.place(next(iter(batches)))
    return jax.jit(trainer.gradients_of).lower(state, batch).compile(), (state, batch)


def gradients(config, devices=1):
    run, given = step_of(config, devices)
    return jax.device_get(run(*given))


def assert_close(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    flat = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)
        for tree in (actual, expected)
        if jax.tree.leaves(tree)
    ]
    if flat:
        error = np.linalg.norm(flat[0] - flat[1])
        assert error <= TOLERANCE * np.linalg.norm(flat[1])


def cases():
    for name in CASES:
        marks = [pytest.mark.slow]
        marks += [] if name in FAST else [pytest.mark.exhaustive]
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [*cases()])
def test_all_is_what_one_device_gives(name):
    family, changes, stages, axes = CASES[name]
    config = mesh(zoo_smoke.experiment(family))
    for change in changes:
        config = change(config)
    piped = mesh(pipeline(config, **stages), **axes)
    grads, parts = gradients(piped, int(np.prod([*axes.values()])))
    expected_grads, expected = gradients(config)
    assert_close(grads, expected_grads)
    for name, value in parts._asdict().items():
        assert_close(value, getattr(expected, name))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_weights_that_are_held_are_gathered_once_a_step(schedule):
    plain = zoo_smoke.experiment("llama2")
    stages = dict(stages=2, microbatches=4, schedule=schedule)
    held = mesh(pipeline(plain, hold_weights=True, **stages), stage=2, fsdp=2)
    run, given = step_of(held, devices=4)
    assert_close(jax.device_get(run(*given))[0], gradients(plain)[0])
    in_loops = [c for c in hlo.read(run.as_text()).collectives if c.in_loop]
    assert {each.kind for each in in_loops} == {"collective-permute"}


def test_calls_that_cache_and_rows_that_microbatches_do_not_divide_run_in_sequence():
    def program(config, rows, cache=None):
        model = graph.build(config).make_model()
        variables = jax.eval_shape(model.init, jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((rows, 4), np.int32)
        run = jax.make_jaxpr(lambda v, t: model.apply(v, t, cache=cache).hidden)
        return str(run(variables, tokens))

    plain = tiny.experiment()
    piped = pipeline(plain, stages=3, microbatches=2)
    assert isinstance(graph.build(piped.model.decoder.stacks[0].execution), Pipeline)
    assert program(piped, rows=2) != program(plain, rows=2)
    assert program(piped, rows=3) == program(plain, rows=3)
    empty = EmptyCache(4)
    assert program(piped, rows=2, cache=empty) == program(plain, rows=2, cache=empty)
