"""The smallest experiment with all parts of Llama 2, and a run of it without files."""

import functools
from collections.abc import Callable
from typing import Any

import fiddle as fdl
import jax
import numpy as np

from fdl_configs import data, optimizers
from fdl_configs.models.llama import llama
from fdl_configs.runs import pretrain
from maxfdl import graph
from maxfdl.experiment import Experiment
from maxfdl.layers.parameter import Parameter, map_parameters, path_hash, whole_path
from maxfdl.model import Model
from maxfdl.ops.state import StateDeclaration
from maxfdl.train.program import Program

VOCAB, ROWS, LENGTH = 64, 8, 16


def experiment(*mutations: Callable, **model_fields) -> fdl.Config[Experiment]:
    """Three layers of width 16 in NNX, changed by `mutations` in order."""
    sizes = dict(
        features=16,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp=32,
        vocab_size=VOCAB,
    )
    config = pretrain(
        name="tiny",
        model=llama(**sizes | model_fields),
        data=data.synthetic(),
        optimizer=optimizers.adamw(peak=1e-2, warmup_steps=4),
        steps=20,
        batch_size=ROWS,
        sequence_length=LENGTH,
    )
    for mutation in mutations:
        config = mutation(config)
    return config


def batch(seed: int) -> dict[str, np.ndarray]:
    """Random tokens in rows of two documents and some padding."""
    rng = np.random.default_rng(seed)
    shape = (ROWS, LENGTH)
    first, real = rng.integers(3, 8, (ROWS, 1)), rng.integers(11, 17, (ROWS, 1))
    place = np.broadcast_to(np.arange(LENGTH), shape)
    last_of_document = (place == first - 1) | (place == real - 1)
    return {
        "tokens": rng.integers(0, VOCAB, shape).astype(np.int32),
        "targets": rng.integers(0, VOCAB, shape).astype(np.int32),
        "segment_ids": np.where(place < first, 1, np.where(place < real, 2, 0)).astype(
            np.int32
        ),
        "positions": np.where(place < first, place, place - first).astype(np.int32),
        "weights": ((place < real) & ~last_of_document).astype(np.float32),
    }


def program(config: fdl.Config[Experiment], devices: int = 1) -> Program:
    made = graph.build(config)
    trainer = made.make_trainer(made.make_sharding(jax.devices()[:devices]))
    return Program(trainer, made.batch_size, made.sequence_length)


def begin(program: Program) -> Any:
    """Returns what `program.init()` does."""
    model = program.trainer.model
    state = jax.tree.map(StateDeclaration.first, model.state())
    variables = {"params": weights(model), "state": state}
    # Buffers of what it starts from are donated, and these serve all tests.
    return program.start_from(jax.tree.map(np.array, variables))


def weights(model: Model) -> Any:
    """Returns the parameters of what `model.init` makes with the first seed.

    One program that draws all weights compiles longer than the step, so here each kind
    of weights has a program of its own, which serves all tests.
    """
    dtype = model.network.param_dtype

    def first(path: str, parameter: Parameter) -> jax.Array:
        whole = parameter.whole
        values = _drawn(whole_path(path, parameter), whole)
        return parameter.part_of(values.astype(whole.dtype or dtype))

    return map_parameters(first, model.parameters())


@functools.cache
def _drawn(path: str, parameter: Parameter) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(0), path_hash("params"))
    return _draw(parameter)(jax.random.fold_in(key, path_hash(path)))


@functools.cache
def _draw(parameter: Parameter) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(parameter.draw)


def train(config: fdl.Config[Experiment], steps: int, devices: int = 1):
    """Returns the loss of each step, and the state after the last."""
    compiled = program(config, devices)
    run, state = compiled.compile_step().run, begin(compiled)
    losses = []
    for i in range(steps):
        state, metrics = run(state, compiled.place(batch(i)))
        losses.append(float(metrics["loss"]))
    return losses, state


@functools.cache
def one_device(steps: int):
    """Returns what `train` does of the experiment as it is: many compare with that."""
    return train(experiment(), steps)
