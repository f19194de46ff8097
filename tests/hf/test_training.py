"""Five whole steps of AdamW against torch and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs import optimizers
from maxfdl import graph
from maxfdl.mutations import router_losses, to_linen, unroll_layers
from maxfdl.train.program import Program
from tests import goldens
from tests.hf.test_goldens import next_token_batch
from tests.hf.variants import loaded

TOPIC = goldens.topic("train_steps")
SETTINGS = TOPIC["params"]


def trained(folder, *mutations):
    """Returns what the steps reported, the parameters after them, and the trainer."""
    golden, weights = goldens.algorithm("train_steps"), loaded(folder)
    config = weights.config
    adamw = SETTINGS["adamw"]
    config = graph.copy(config)
    config.optimizer = optimizers.adamw(
        peak=adamw["lr"],
        warmup_steps=SETTINGS["warmup"],
        weight_decay=adamw["weight_decay"],
    )
    config.optimizer.schedule.final_fraction = 0.0
    config.optimizer.weight_decay.scale = config.optimizer.weight_decay.bias = 1.0
    config.steps, config.batch_size = SETTINGS["total"], 4
    batches = golden[f"in.{folder}.input_ids"]
    config.sequence_length = batches.shape[-1]
    for mutation in mutations:
        config = mutation(config)
    if folder == "mixtral":
        coefficient = SETTINGS["aux_coef_mixtral"]
        config = router_losses(config, batch_balance=coefficient)
    experiment = graph.build(config)
    trainer = experiment.make_trainer(experiment.make_sharding(jax.devices()[:1]))
    program = Program(trainer, config.batch_size, config.sequence_length)
    step = program.compile_step().run
    # The step overwrites its state, and others need the weights.
    state = program.start_from(jax.tree.map(jnp.array, weights.variables))
    reports = []
    for tokens in batches:
        batch = {
            "tokens": tokens,
            "positions": np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape),
            "segment_ids": np.ones_like(tokens),
            **next_token_batch(jnp.asarray(tokens)),
        }
        batch = {name: np.asarray(value) for name, value in batch.items()}
        state, metrics = step(state, program.place(batch))
        reports.append(metrics)
    return reports, state, trainer.model


@pytest.mark.parametrize(
    "mutations",
    [(), pytest.param((to_linen, unroll_layers), marks=pytest.mark.slow)],
    ids=["as it is", "linen, unrolled"],
)
@pytest.mark.parametrize(
    "folder",
    [
        "llama3",
        *(pytest.param(f, marks=pytest.mark.slow) for f in ("gemma2", "mixtral")),
    ],
)
def test_five_steps_agree(folder, mutations):
    golden, noise = goldens.algorithm("train_steps"), TOPIC["noise_f32_vs_f64"][folder]
    reports, state, model = trained(folder, *mutations)
    names = {
        "loss": "loss",
        "ce": "cross_entropy",
        "grad_norm": "grad_norm",
        "lr": "learning_rate",
    }
    for theirs, ours in names.items():
        values = [float(report[ours]) for report in reports]
        expected = golden[f"out.{folder}.{theirs}"]
        atol = goldens.tolerance(noise[theirs])
        np.testing.assert_allclose(values, expected, rtol=0, atol=atol, err_msg=theirs)
    (norm,) = state["params"]["final_norm"].values()
    atol = goldens.tolerance(noise["final_norm_weight"])
    expected = golden[f"out.{folder}.final_norm_weight"]
    np.testing.assert_allclose(norm, expected, rtol=0, atol=atol)
    variables = {name: state[name] for name in ("params", "state")}
    tokens = jnp.asarray(golden[f"in.{folder}.input_ids"][0])
    logits = model.logits(variables, tokens)
    atol = goldens.tolerance(noise["final_logits"])
    expected = golden[f"out.{folder}.final_logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)
