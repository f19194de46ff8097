"""Built objects, and errors that know their place."""

import copy
import pickle

import fiddle as fdl
import pytest
from flax import nnx

from maxfdl.errors import ConfigError
from maxfdl.graph import build, set_value
from maxfdl.graph.build import Factory
from tests.graph.toys import ops, root
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers


def test_a_graph_is_validated_before_it_is_built():
    cfg = small.experiment()
    cfg.steps = "many"
    with pytest.raises(ConfigError, match="steps = 'many' is not int"):
        build(cfg)


def test_config_nodes_are_objects_and_partial_nodes_factories():
    built = build(small.experiment())
    assert isinstance(built, root.Experiment)
    assert built.model.func is layers.Decoder
    assert built.model.keywords["layers"][0].keywords["q"].keywords["dot"] == ops.Dot()


def test_a_factory_makes_the_layer():
    model = build(small.experiment()).model(rngs=nnx.Rngs(0))
    assert isinstance(model.layers[0].q, layers.Linear)


def test_an_error_inside_a_factory_names_the_path_of_the_innermost_node():
    cfg = set_value(small.experiment(), "model.features", 2000)
    model = build(cfg).model
    with pytest.raises(ValueError, match="too large") as error:
        model(rngs=nnx.Rngs(0))
    notes = [n for n in error.value.__notes__ if n.startswith("while constructing")]
    assert notes == ["while constructing Linear at model.layers[0].q"]


def test_the_root_has_a_name_in_errors():
    factory = build(fdl.Partial(layers.Linear))
    with pytest.raises(TypeError) as error:
        factory()
    assert error.value.__notes__ == ["while constructing Linear at <root>"]


def test_two_builds_are_equal():
    one, two = build(small.experiment()), build(small.experiment())
    assert one == two
    assert hash(one.model) == hash(two.model)
    other = build(set_value(small.experiment(), "model.layers[1].num_heads", 8))
    assert one != other


def test_shared_nodes_are_built_once():
    shared = small.linear()
    cfg = small.attention()
    cfg.q = cfg.k = shared
    built = build(cfg)
    assert built.keywords["q"] is built.keywords["k"]


def test_factories_pickle_and_copy_with_their_path():
    factory = build(small.experiment()).model
    for other in (pickle.loads(pickle.dumps(factory)), copy.deepcopy(factory)):
        assert isinstance(other, Factory)
        assert other == factory and other.path == "model"


def test_the_graph_is_not_touched():
    cfg = small.experiment()
    build(cfg)
    assert cfg == small.experiment() and type(cfg.model) is fdl.Partial


def test_nothing_is_logged(caplog):
    build(small.experiment())
    assert not caplog.records
