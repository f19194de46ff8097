"""Every family trains, and the same in NNX as in Linen."""

import functools
import itertools
import typing

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.mutations import to_linen, unroll_layers
from maxfdl.train.program import Program
from tests import tiny
from tests.hf.variants import FAMILIES

FAST = ("llama3",)
UNROLLED = ("gemma3", "deepseek_v3", "gpt2")
NAMES = (*FAMILIES, "gpt3")
EACH = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMES
]


@functools.cache
def trajectory(family, *mutations):
    """Returns the metrics of each step, on one device."""
    config: typing.Any = zoo_smoke.experiment(family)
    for mutation in mutations:
        config = mutation(config)
    experiment = graph.build(config)
    sharding = experiment.make_sharding(jax.devices()[:1])
    trainer = experiment.make_trainer(sharding)
    program = Program(trainer, experiment.batch_size, experiment.sequence_length)
    step, state = program.compile_step().run, tiny.begin(program)
    batches = experiment.make_data(trainer.model).train()
    reports = []
    for batch in itertools.islice(batches, experiment.steps):
        state, metrics = step(state, program.place(batch))
        reports.append(jax.device_get(metrics))
    return reports


@pytest.mark.parametrize("family", EACH)
def test_five_steps_are_finite_and_the_same_in_both_families(family):
    nnx, linen = trajectory(family), trajectory(family, to_linen)
    assert len(nnx) == 5
    for left, right in zip(nnx, linen, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert np.isfinite(value) and value.tobytes() == right[name].tobytes()
    assert nnx[-1]["skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in UNROLLED else pytest.mark.exhaustive)
        for name in NAMES
    ],
)
def test_unrolled_layers_train_alike(family):
    scanned, unrolled = trajectory(family), trajectory(family, unroll_layers)
    for left, right in zip(scanned, unrolled, strict=True):
        np.testing.assert_allclose(left["loss"], right["loss"], rtol=1e-5)
    # Sums in another order change the last bits of gradients, and Adam's first steps
    # are signs of them: the norm is compared as long as the weights are the same.
    for left, right in zip(scanned[:2], unrolled[:2], strict=True):
        np.testing.assert_allclose(left["grad_norm"], right["grad_norm"], rtol=1e-5)


@pytest.mark.slow
def test_routers_have_all_their_losses():
    reports = trajectory("deepseek_v3")
    terms = {"cross_entropy", "sequence_balance", "batch_balance", "router_z"}
    assert terms | {"expert_load"} <= reports[0].keys()
    total = sum(float(reports[0][name]) for name in terms)
    assert total == pytest.approx(float(reports[0]["loss"]), rel=1e-6)
    assert all(float(reports[0][name]) > 0 for name in terms)


def test_another_name_is_refused_in_one_sentence():
    with pytest.raises(UserError, match="no family 'lama3'. Did you mean 'llama3'"):
        zoo_smoke.experiment("lama3")
