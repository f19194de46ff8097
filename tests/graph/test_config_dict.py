"""A graph as a ConfigDict."""

import fiddle as fdl
from ml_collections import config_dict

from maxfdl.graph import to_config_dict
from tests.graph.toys import ops
from tests.graph.toys.experiments import small
from tests.graph.toys.nnx import layers


def test_nodes_are_config_dicts_of_their_set_fields():
    found = to_config_dict(small.experiment(depth=1))
    assert isinstance(found, config_dict.ConfigDict)
    assert found["__callable__"] == "Config[tests.graph.toys.root.Experiment]"
    assert found.optimizer.learning_rate == 0.1
    assert found.model.features == 8
    assert "remat" not in found.model


def test_keys_spell_graph_paths():
    found = to_config_dict(small.experiment())
    layer = found.model.layers["[1]"]
    assert layer.num_heads == 4
    assert layer.q.dot["__callable__"] == "Config[tests.graph.toys.ops.Dot]"


def test_classes_and_functions_become_names():
    found = to_config_dict(fdl.Config(ops.Fp8Dot, forward=ops.Dot))
    assert found.forward == "tests.graph.toys.ops.Dot"


def test_a_shared_node_is_one_config_dict():
    shared = small.linear()
    found = to_config_dict(fdl.Partial(layers.Attention, q=shared, k=shared))
    assert found.q is found.k
