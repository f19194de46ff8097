"""What a step and an evaluation report, and of which sinks."""

import functools
import json

import fiddle as fdl
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import UserError
from maxfdl.layers.sinks import (
    Counts,
    HeadScores,
    Last,
    Max,
    Mean,
    RouterLoad,
    SinkKey,
    Sum,
)
from maxfdl.mutations import (
    average_weights,
    mesh,
    router_losses,
    selection_bias,
    use_muonclip,
)
from maxfdl.run.directory import RunDirectory
from maxfdl.run.loop import RunOptions, run
from maxfdl.train.observed import of_sinks
from maxfdl.train.qk_clip import QkClip
from tests import tiny

STACK, LAYER = (functools.partial(SinkKey, (name,)) for name in ("stack", "layer"))


def load(counts):
    none = Mean(jnp.zeros(()), jnp.zeros(()))
    return RouterLoad(Counts(jnp.asarray(counts)), none, none, none)


def test_every_kind_of_sink_gives_a_number():
    """Of a stack of two layers, and of another layer."""
    kinds = {
        "sum": (Sum(jnp.float32([1, 2])), Sum(jnp.float32(4)), 7),
        "mean": (
            Mean(jnp.float32([1, 2]), jnp.float32([1, 3])),
            Mean(jnp.float32(9), jnp.float32(2)),
            12 / 6,
        ),
        "max": (Max(jnp.float32([1, -2])), Max(jnp.float32(0.5)), 1),
        "counts": (Counts(jnp.int32([[1, 2], [3, 4]])), Counts(jnp.int32([5, 6])), 21),
        "last": (Last(jnp.float32([1, 2])), Last(jnp.float32(6)), 3),
    }
    sinks = {STACK(name): stack for name, (stack, _, _) in kinds.items()}
    sinks |= {LAYER(name): layer for name, (_, layer, _) in kinds.items()}
    sinks[STACK("scores")] = HeadScores(Max(jnp.float32([[1, 8], [2, 3]])))
    expected = {name: number for name, (_, _, number) in kinds.items()}
    found = {name: float(value) for name, value in of_sinks(sinks).items()}
    assert found == expected | {"max_logit": 8.0}


@pytest.mark.parametrize("counts", [[1, 1, 0, 0], [30, 10, 12, 12], [0, 0, 0, 0]])
def test_load_is_relative_to_the_mean_of_its_layer(counts):
    found = of_sinks({STACK("load"): load(counts), LAYER("load"): load([5, 5, 5, 5])})
    ratios = np.divide(counts, np.mean(counts) or 1.0)
    assert found["expert_load"] == max(1.0, *ratios)
    assert found["expert_load_least"] == min(1.0, *ratios)


@pytest.mark.slow
def test_an_evaluation_reports_experts_and_terms_too(tmp_path):
    config = zoo_smoke.experiment("mixtral")
    config.steps, config.metrics.tensorboard = 1, False
    options = RunOptions(graph_json=graph.dump_json(config))
    run(graph.build(config), RunDirectory(tmp_path), options)
    *_, line = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    terms = ("cross_entropy", "router_z", "sequence_balance", "batch_balance")
    total = sum(line[f"eval_{name}"] for name in terms)
    assert line["eval_loss"] == pytest.approx(total, rel=1e-6)
    assert line["eval_expert_load"] >= 1 >= line["eval_expert_load_least"] >= 0


def test_every_process_can_read_an_evaluation():
    cut = functools.partial(mesh, data=2, fsdp=2, tensor=2)
    program = tiny.program(tiny.experiment(cut, use_muonclip), devices=8)
    terms, sinks = program.compile_evaluation().output_shardings
    places = jax.tree.leaves((terms, sinks))
    assert sinks and all(place.is_fully_replicated for place in places)


@pytest.mark.parametrize(
    ("mutation", "problem"),
    [
        (functools.partial(router_losses, sequence_balance=0.1), "term sequence_balan"),
        (functools.partial(router_losses, batch_balance=0.1), "a term batch_balance,"),
        (functools.partial(router_losses, z=0.1), "a term router_z, of routers of exp"),
        (functools.partial(selection_bias, rate=0.1), "SelectionBias has nothing to u"),
    ],
)
def test_what_acts_on_routers_refuses_a_model_without_them(mutation, problem):
    with pytest.raises(UserError, match=problem):
        graph.validate(tiny.experiment(mutation))


def test_a_clip_without_scores_is_refused():
    config = tiny.experiment()
    config.trainer.updates = [fdl.Config(QkClip)]
    with pytest.raises(UserError, match="QkClip needs the highest .* use_muoncl"):
        graph.validate(config)


def test_a_term_comes_once():
    config = router_losses(tiny.experiment(), z=0.1)
    config.loss.auxiliary = config.loss.auxiliary * 2
    with pytest.raises(UserError, match=r"\(router_z, router_z\) must each come once"):
        graph.validate(config)


def test_an_update_comes_once():
    config = average_weights(tiny.experiment())
    config.trainer.updates = config.trainer.updates * 2
    with pytest.raises(UserError, match=r"\(weight_average, weight_average\) must eac"):
        graph.validate(config)
