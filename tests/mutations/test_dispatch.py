"""Mutations of how many tokens experts take."""

import pytest

from experiments import llama2_smoke, zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.mutations import capacity, dropless
from maxfdl.ops.experts import Dispatch, Dropless


def dispatches(config):
    return [graph.build(node) for node in graph.nodes_of(config, Dispatch)]


def test_a_capacity_says_nothing_of_room_that_it_had_before():
    config = dropless(zoo_smoke.experiment("mixtral"), room_factor=2.0)
    assert dispatches(config) == [Dropless(room_factor=2.0)]
    assert graph.diff(dropless(capacity(config)), dropless(config)) == []
    assert dispatches(dropless(config)) == [Dropless()]


def test_a_model_without_experts_is_refused():
    for mutation in (capacity, dropless):
        with pytest.raises(MutationError, match="No Dispatch in this graph, which"):
            mutation(llama2_smoke.experiment())


def test_a_factor_of_0_is_refused():
    config = capacity(zoo_smoke.experiment("mixtral"), factor=0.0)
    with pytest.raises(ConfigError, match=r"Capacity factor \(0\.0\) must be positive"):
        graph.validate(config)
