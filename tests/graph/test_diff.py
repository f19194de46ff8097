"""What differs between two graphs."""

import fiddle as fdl
import pytest
from fiddle import diffing

from maxfdl.errors import ConfigError
from maxfdl.graph import as_fiddle_diff, copy, diff, set_value
from maxfdl.graph import flatten as flatten_file
from tests.graph.toys import mutations, ops, root
from tests.graph.toys.experiments import small
from tests.graph.toys.linen import layers as linen
from tests.graph.toys.nnx import layers


def test_equal_graphs_have_no_difference():
    cfg = small.experiment()
    assert diff(cfg, copy(cfg)) == []


def test_swaps_of_whole_families_are_one_line():
    cfg = small.experiment()
    assert diff(cfg, mutations.to_linen(cfg)) == [
        "* tests.graph.toys.nnx -> tests.graph.toys.linen  (7 nodes: Attention,"
        " Decoder, Linear)"
    ]


def test_swaps_of_one_class_name_their_paths_and_siblings_collapse():
    cfg = small.experiment()
    assert diff(cfg, mutations.enable_fp8(cfg, forward="e5m2")) == [
        "* tests.graph.toys.ops.Dot -> tests.graph.toys.ops.Fp8Dot  (4 nodes:"
        " model.layers[0..1].{q,k}.dot)",
        "+ model.layers[0..1].{q,k}.dot.forward = 'e5m2'",
    ]


def test_added_removed_and_changed_values():
    old = small.experiment()
    new = set_value(set_value(old, "steps", 5), "model.features", 16)
    new.optimizer = None
    assert diff(old, new) == [
        "~ model.features: 8 -> 16",
        "~ optimizer: Partial[tests.graph.toys.root.sgd] -> None",
        "- optimizer.learning_rate = 0.1",
        "+ steps = 5",
    ]
    assert diff(new, old) == [
        "~ model.features: 16 -> 8",
        "~ optimizer: None -> Partial[tests.graph.toys.root.sgd]",
        "+ optimizer.learning_rate = 0.1",
        "- steps = 5",
    ]


def test_a_new_list_item_shows_with_all_that_is_in_it():
    lines = diff(small.experiment(depth=1), small.experiment(depth=2))
    assert lines[0] == (
        "+ model.layers[1]: Partial[tests.graph.toys.nnx.layers.Attention]"
    )
    assert "+ model.layers[1].num_heads = 4" in lines


def test_a_default_equals_the_same_value_written_down():
    old = fdl.Config(root.Experiment, steps=10)
    new = fdl.Config(root.Experiment)
    assert old == new and diff(old, new) == []


def test_config_and_partial_of_one_class_differ():
    lines = diff(fdl.Config(ops.Dot), fdl.Partial(ops.Dot))
    assert lines == [
        "* Config[tests.graph.toys.ops.Dot] -> Partial[tests.graph.toys.ops.Dot]  (1"
        " node: <root>)"
    ]


def test_sharing_is_a_difference():
    shared = small.linear()
    one = fdl.Partial(layers.Attention, q=shared, k=shared)
    two = fdl.Partial(layers.Attention, q=small.linear(), k=small.linear())
    assert one != two
    assert diff(one, two) == [
        "~ k: shared with q -> Partial[tests.graph.toys.nnx.layers.Linear]"
    ]
    assert diff(two, one) == [
        "~ k: Partial[tests.graph.toys.nnx.layers.Linear] -> shared with q"
    ]


def test_a_change_inside_what_was_shared_shows():
    shared = small.linear()
    one = fdl.Partial(layers.Attention, q=shared, k=shared)
    two = fdl.Partial(layers.Attention, q=small.linear(), k=small.linear())
    two.k.use_bias = True
    assert "+ k.use_bias = True" in diff(one, two)


def test_one_list_in_two_places_differs_from_two_equal_lists():
    together = ["x"]
    one = fdl.Config(root.Experiment, name=together, rules=together)
    two = fdl.Config(root.Experiment, name=["x"], rules=["x"])
    assert one != two
    assert diff(one, two) == ["~ name: same as rules -> ['x'] of its own"]


def test_a_list_and_a_tuple_of_nodes_differ():
    one = fdl.Partial(layers.Decoder, layers=[small.attention()])
    two = fdl.Partial(layers.Decoder, layers=(small.attention(),))
    assert diff(one, two) == ["~ layers: a list of nodes -> a tuple of nodes"]


@pytest.mark.parametrize(
    "change",
    [
        lambda cfg: setattr(cfg, "steps", 11),
        lambda cfg: setattr(cfg, "optimizer", None),
        lambda cfg: setattr(cfg.model, "layers", []),
        lambda cfg: setattr(cfg.model, "layers", cfg.model.layers[::-1]),
        lambda cfg: setattr(cfg.model, "layers", [cfg.model.layers[0]] * 2),
        lambda cfg: setattr(cfg.model, "betas", (0.9, 0.95)),
        lambda cfg: setattr(cfg, "seed", 0),
        lambda cfg: cfg.rules.update(embed="x"),
        lambda cfg: delattr(cfg, "rules"),
        lambda cfg: delattr(cfg.model, "features"),
        lambda cfg: fdl.update_callable(cfg.model, linen.Decoder),
    ],
)
def test_there_are_no_lines_if_and_only_if_the_graphs_are_equal(change):
    cfg, other = small.experiment(), small.experiment()
    change(other)
    assert bool(diff(cfg, other)) == (cfg != other)
    assert bool(diff(other, cfg)) == (other != cfg)


def test_only_looks_below_one_path():
    old = small.experiment()
    new = mutations.enable_fp8(set_value(old, "steps", 5))
    assert diff(old, new, only="steps") == ["+ steps = 5"]
    assert len(diff(old, new, only="model.layers[0]")) == 2
    with pytest.raises(ConfigError) as error:
        diff(old, new, only="modle")
    assert str(error.value) == "no such path 'modle'. Did you mean 'model'?"


def test_the_work_grows_linearly_with_the_number_of_layers(monkeypatch):
    visits = []
    real = flatten_file._Walk.visit

    def counting(self, value, path):
        visits.append(path)
        return real(self, value, path)

    monkeypatch.setattr(flatten_file._Walk, "visit", counting)

    def work(depth):
        cfg = small.experiment(depth=depth)
        visits.clear()
        assert diff(cfg, mutations.to_linen(cfg))
        return len(visits)

    assert work(80) - work(40) == work(120) - work(80)


def test_the_fiddle_diff_makes_the_new_graph():
    old = small.experiment(depth=3)
    new = mutations.enable_fp8(mutations.to_linen(old))
    made = copy(old)
    diffing.apply_diff(as_fiddle_diff(old, new), made)
    assert made == new
