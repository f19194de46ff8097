"""Checkpoints of MaxText give its own logits, losses and further steps."""

import functools

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs.maxtext import experiment
from maxfdl import graph, maxtext
from maxfdl.model import Model
from maxfdl.sharding.mesh import MeshShape
from maxfdl.sharding.sharding import Sharding
from maxfdl.tensors.maxtext.folder import MaxTextFolder
from maxfdl.train.trainer import Trainer
from tests.maxtext.goldens import NAMES, Golden

QUICK = {"xla_backend_optimization_level": 0}
PARAMETERS_ALONE = "llama2_linen024_param_only"


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def logits_of(model: Model, variables, batch):
    inputs = {name: batch[name] for name in ("segment_ids", "positions")}
    return model.apply(variables, batch["tokens"], **inputs).logits


def check_logits(golden: Golden, model: Model, variables, *prefixes: str):
    for prefix in prefixes:
        batch = golden.batch(prefix)
        ours = logits_of(model, variables, batch)
        theirs = golden.numbers[f"{prefix}logits"]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=golden.logits_tolerance)
        losses = -jnp.take_along_axis(
            jax.nn.log_softmax(ours), batch["targets"][..., None], -1
        )[..., 0]
        loss = jnp.sum(losses * batch["weights"]) / jnp.sum(batch["weights"])
        expected = (
            golden.numbers[f"{prefix}loss"] - golden.numbers[f"{prefix}moe_lb_loss"]
        )
        np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", ["nnx", "linen"])
def test_parameters_alone_give_the_logits_of_maxtext_in_both_families(backend):
    golden = Golden(PARAMETERS_ALONE)
    loaded = maxtext.load(golden.path, backend)
    assert loaded.state is None
    check_logits(golden, loaded.model, loaded.variables, "packed_")


def trainer_of(config) -> Trainer:
    experiment = graph.build(config)
    alone = MeshShape(data=1, fsdp=1, tensor=1).build(jax.devices()[:1])
    return experiment.make_trainer(Sharding(alone, experiment.sharding))


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_is_that_of_maxtext_also_past_the_end(name):
    golden = Golden(name)
    optimizer = experiment(MaxTextFolder(golden.path).options).optimizer
    schedule = fdl.build(optimizer.schedule)
    for step, rate in enumerate(golden.config.get("learning_rate_by_step", [])):
        ours = schedule(jnp.asarray(step), 1000)
        np.testing.assert_allclose(ours, rate, rtol=2e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_as_it_would_have_in_maxtext(name):
    golden = Golden(name)
    loaded = maxtext.load(golden.path)
    check_logits(golden, loaded.model, loaded.variables, "", "packed_")
    if not golden.trains:
        return
    state, numbers = loaded.state, golden.numbers
    assert state is not None
    assert int(state["step"]) == golden.config["state_step"]
    step = jax.jit(trainer_of(loaded.config).step, compiler_options=QUICK)
    for i in range(len(numbers["train_loss"])):
        state, metrics = step(state, golden.batch(f"train{i}_"))
        expected = {
            "loss": (numbers["train_loss"][i], 1e-5),
            "learning_rate": (numbers["train_lr"][i], 1e-9),
            "grad_norm": (numbers["train_raw_grad_norm"][i], golden.gradient_tolerance),
        }
        for metric, (value, tolerance) in expected.items():
            assert abs(metrics[metric] - value) <= tolerance, (i, metric)
    variables = {name: state[name] for name in ("params", "state")}
    after = logits_of(loaded.model, variables, golden.batch())
    tolerance = golden.after_tolerance
    np.testing.assert_allclose(after, numbers["after_logits"], rtol=0, atol=tolerance)
