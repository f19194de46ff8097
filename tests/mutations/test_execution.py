"""Pipelines in graphs: which stacks they take, what is refused, and what is said."""

import fiddle as fdl
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError, UserError
from maxfdl.layers.execution import Scan
from maxfdl.layers.pipeline import Pipeline, Pipeline1F1B
from maxfdl.mutations import mesh, multi_token_prediction, pipeline, scan_layers
from maxfdl.report.pipelines import pipelines_of
from maxfdl.sharding.rules import AxisRules
from tests import tiny


def kinds(config):
    return [fdl.get_callable(s.execution) for s in config.model.decoder.stacks]


def test_stacks_that_are_too_short_stay_loops_and_the_rest_of_others_runs_before():
    config = zoo_smoke.experiment("gemma3")
    config = multi_token_prediction(config, depth=1)
    piped = pipeline(config, stages=2, microbatches=4)
    assert kinds(piped) == [Pipeline, Scan, Scan]
    assert fdl.get_callable(piped.model.later_token.stack.execution) is Scan
    assert pipelines_of(piped) == [
        "decoder.stacks[0]: 4 of 5 repeats in 2 stages, 1 run before it; a stage has"
        " nothing to do in 1 of 5 iterations (20.0%)"
    ]
    assert scan_layers(piped) == config


def test_several_turns_are_told():
    config = pipeline(
        tiny.experiment(num_layers=4), stages=2, microbatches=4, repeats=2
    )
    (sentence,) = pipelines_of(config)
    assert "4 of 4 repeats in 2 stages that take 2 turns;" in sentence
    assert sentence.endswith("1 of 9 iterations (11.1%)")


def test_weights_that_a_stage_holds_are_told():
    config = pipeline(tiny.experiment(), stages=3, microbatches=3, hold_weights=True)
    (sentence,) = pipelines_of(config)
    assert sentence.endswith("; weights are gathered once a step")


def test_the_schedule_is_a_class_of_its_own():
    config = pipeline(tiny.experiment(), stages=3, microbatches=2, schedule="1f1b")
    assert kinds(config) == [Pipeline1F1B]
    assert "3 of 3 repeats in 3 stages" in pipelines_of(config)[0]


def test_a_graph_without_a_stack_that_can_be_cut_is_refused():
    with pytest.raises(MutationError, match=r"stages \(2\) times repeats \(2\) must"):
        pipeline(tiny.experiment(), stages=2, microbatches=2, repeats=2)


def test_a_stack_that_became_too_short_is_refused():
    config = pipeline(tiny.experiment(), stages=3, microbatches=2)
    config.model.decoder.stacks[0].repeats = 2
    with pytest.raises(ConfigError, match=r"repeats \(2\) must be at least .* \(3\)"):
        graph.validate(config)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (dict(stages=0, microbatches=2), r"Pipeline stages \(0\) must be at least 1"),
        (
            dict(stages=2, microbatches=3, repeats=2),
            r"microbatches \(3\) must be a multiple of stages \(2\) where repeats",
        ),
    ],
)
def test_fields_that_fit_no_schedule_are_refused(fields, problem):
    config = pipeline(tiny.experiment(num_layers=4), **fields)
    with pytest.raises(ConfigError, match=problem):
        graph.validate(config)


@pytest.mark.parametrize(
    ("axes", "microbatches", "problem"),
    [
        (dict(), 3, r"\(8\) must be a multiple of its microbatches \(3\) times"),
        (
            dict(data=4),
            4,
            r"microbatches \(4\) times the shards of the rows \(4, .*data",
        ),
        (dict(fsdp=4), 4, r"\(4\) times the shards of the rows \(4, mesh axes fsdp\)"),
        (dict(expert=4), 4, "rows of a microbatch: dim 'batch' of size 2 cannot be"),
        (dict(stage=4), 4, r"stages \(2\) must be a multiple of the mesh axis 'stage'"),
    ],
)
def test_a_batch_that_a_mesh_and_microbatches_cannot_cut_is_refused(
    axes, microbatches, problem
):
    config = pipeline(tiny.experiment(), stages=2, microbatches=microbatches)
    config = mesh(config, **{"fsdp": 1, **axes})
    with pytest.raises(UserError, match=problem):
        tiny.program(config, devices=max(axes.values(), default=1))


def test_layers_that_stages_share_evenly_lie_with_their_stages():
    def spec_of(num_layers):
        config = tiny.experiment(num_layers=num_layers)
        config = pipeline(config, stages=2, microbatches=2)
        program = tiny.program(mesh(config, stage=2, fsdp=2), devices=4)
        params = program.trainer.state_shardings()["params"]["decoder"]["stacks_0"]
        return params["layers_0"]["mlp"]["up"]["kernel"].spec

    assert tuple(spec_of(4)) == ("stage", "fsdp", None)
    layers, embed, _ = spec_of(3)
    assert layers is None and set(embed) == {"stage", "fsdp"}


def test_the_axis_stage_cuts_rows_and_parameters_outside_of_pipelines():
    rules = AxisRules()
    assert "stage" in rules.batch and "stage" in rules.embed and not rules.layers
