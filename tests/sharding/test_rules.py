"""The table from logical dims to mesh axes."""

import dataclasses

import jax
import pytest

from maxfdl import graph
from maxfdl.sharding.rules import AxisRules, dims
from tests import tiny


def test_refuses_a_mesh_axis_that_does_not_exist():
    (problem,) = AxisRules.check_config(AxisRules(embed=("fsdp", "tenser")))
    assert problem == (
        "AxisRules embed names the mesh axis 'tenser', which must be one of data,"
        " fsdp, stage, context, tensor, expert."
    )


def test_refuses_a_dim_in_use_that_does_not_exist():
    (problem,) = AxisRules.check_config(AxisRules(cut_in_use=("expert",)))
    assert problem.startswith("AxisRules cut_in_use names the dim 'expert', which must")
    assert problem.endswith("stages, layers.")


def test_accepts_the_default():
    assert not list(AxisRules.check_config(AxisRules()))


def test_every_dim_of_every_parameter_has_a_rule():
    rules = {field.name for field in dataclasses.fields(AxisRules)}
    model = graph.build(tiny.experiment()).make_model()
    for parameter in jax.tree.leaves(model.parameters()):
        assert set(parameter.full_axes) <= rules


@pytest.mark.parametrize("name", [*dims(), "cut_in_use"])
def test_rules_are_tuples_of_names(name):
    assert isinstance(getattr(AxisRules(), name), tuple)
