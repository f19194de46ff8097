"""Fragments: every layer of every stack is in one, and what each costs is alike."""

import collections
import functools

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, UserError
from maxfdl.layers.parameter import map_parameters
from maxfdl.mutations import multi_token_prediction, to_linen, use_diloco
from maxfdl.report import hlo
from maxfdl.train.fragments import Streaming
from tests import tiny
from tests.layers.families import assert_same_bits
from tests.train.test_diloco import are_equal, assert_close, train, two

NETWORKS = {
    "dense and experts, with modules of later tokens": "deepseek_v3",
    "a pattern of five and one": "gemma3",
    "stacks of one layer each": "llama4",
    "tied": "gpt2",
}


def declared(family, *mutations):
    config = zoo_smoke.experiment(family)
    if family == "deepseek_v3":
        config = multi_token_prediction(config, depth=2)
    for mutation in mutations:
        config = mutation(config)
    return graph.build(config).make_model().parameters()


def arrays_of(parameters):
    found = {}
    map_parameters(lambda path, p: found.setdefault(path, p), parameters)
    return found


@pytest.mark.parametrize("order", ["strided", "sequential"])
@pytest.mark.parametrize("family", NETWORKS.values(), ids=NETWORKS)
def test_every_layer_of_every_array_is_in_one_fragment(family, order):
    parameters = declared(family)
    arrays = arrays_of(parameters)
    fragments = Streaming(fragments=3, order=order).plan(parameters)
    counts = collections.Counter()
    for fragment in fragments:
        for path, layers in fragment.arrays.items():
            each = range(arrays[path].repeats or 1) if layers is None else layers
            counts.update((path, layer) for layer in each)
    expected = {(k, i) for k, p in arrays.items() for i in range(p.repeats or 1)}
    assert counts.keys() == expected and set(counts.values()) == {1}
    # All arrays of a layer are in the same fragment.
    homes = collections.defaultdict(set)
    for number, fragment in enumerate(fragments):
        for path, layers in fragment.arrays.items():
            for layer in range(arrays[path].repeats or 1) if layers is None else layers:
                holder = path.split("/")[: 3 if path.startswith("decoder") else 1]
                homes[*holder, layer if len(holder) == 3 else 0].add(number)
    assert {len(numbers) for numbers in homes.values()} == {1}


def test_the_plan_does_not_depend_on_the_family_of_layers():
    plan = Streaming(fragments=2).plan
    assert plan(declared("deepseek_v3")) == plan(declared("deepseek_v3", to_linen))


@pytest.mark.parametrize("order", ["strided", "sequential"])
def test_fragments_of_equal_layers_are_of_equal_size(order):
    config = tiny.experiment(num_layers=8, vocab_size=8)
    parameters = graph.build(config).make_model().parameters()
    sizes = [
        sum(p.size for p in jax.tree.leaves(fragment.declared(parameters)))
        for fragment in Streaming(fragments=4, order=order).plan(parameters)
    ]
    assert max(sizes) < 1.1 * min(sizes)
    layers = [
        fragment.arrays["decoder/stacks_0/layers_0/mlp/up/kernel"]
        for fragment in Streaming(fragments=4, order=order).plan(parameters)
    ]
    first = {"strided": (0, 4), "sequential": (0, 1)}[order]
    assert layers[0] == first


def test_a_fragment_is_cut_out_and_put_back():
    parameters = declared("gemma3")
    draw = lambda p: np.random.default_rng(0).normal(size=(2, *p.full_shape))  # noqa: E731
    tree = jax.tree.map(lambda p: jax.numpy.asarray(draw(p)), parameters)
    rebuilt = jax.tree.map(jax.numpy.zeros_like, tree)
    for fragment in Streaming(fragments=3).plan(parameters):
        part = fragment.of_tree(tree, dim=1)
        shapes = jax.tree.map(lambda x: x.shape, part)
        sizes = jax.tree.map(
            lambda p: (2, *p.full_shape), fragment.declared(parameters)
        )
        assert shapes == sizes
        rebuilt = fragment.put(rebuilt, part, dim=1)
    assert_same_bits(rebuilt, tree)


def streaming(**fields):
    sizes = dict(num_replicas=2, sync_period=4, fragments=2) | fields
    return functools.partial(use_diloco, **sizes)


@functools.cache
def of_streaming(**fields):
    return train(tiny.experiment(streaming(**fields)), 9)


def kernel(params):
    """Returns an array of the one stack."""
    return params["decoder"]["stacks_0"]["layers_0"]["mlp"]["up"]["kernel"]


def moved(old, new):
    """Returns which top-level modules, and which layers of the stack, have changed."""
    layers = np.flatnonzero(np.any(kernel(old) != kernel(new), axis=(1, 2)))
    modules = [k for k in ("embedding", "head") if not all(are_equal(old[k], new[k]))]
    return layers.tolist(), modules


def test_fragments_move_in_turns():
    _, states, _ = of_streaming()
    changes = [
        moved(old["params"], new["params"])
        for old, new in zip(states, states[1:], strict=False)
    ]
    # After steps 2, 4, 6 and 8; a fragment has layers 0 and 2 or layer 1.
    expected = {0: [0, 2], 2: [1], 4: [0, 2], 6: [1]}
    assert [layers for layers, _ in changes] == [expected.get(i, []) for i in range(8)]
    assert sorted(changes[0][1] + changes[2][1]) == ["embedding", "head"]


def test_what_a_replica_takes_over_is_what_the_fragment_was_given():
    _, states, _ = of_streaming()
    for index, layers in ((1, [0, 2]), (3, [1])):
        outer = kernel(states[index]["params"])
        own = kernel(states[index]["replicas"]["params"])
        for layer in range(3):
            is_same = np.array_equal(own[0, layer], outer[layer])
            assert is_same == (layer in layers)


@pytest.mark.slow
def test_with_a_mix_of_one_replicas_never_hear_of_each_other():
    _, states, _ = of_streaming(mix=1.0)
    never = functools.partial(use_diloco, num_replicas=2, sync_period=100)
    _, alone, _ = train(tiny.experiment(never), 9)
    own, expected = (x[-1]["replicas"]["params"] for x in (states, alone))
    assert_close(own, expected, 1e-6)
    assert not any(are_equal(states[-1]["params"], alone[-1]["params"]))


@pytest.mark.slow
def test_an_overlap_puts_off_what_replicas_take_over_and_nothing_else():
    """Up to the first take-over all is as without it; then replicas mix in what the
    outer optimizer made of the weights that they had one step before."""
    fields = dict(sync_period=6, fragments=2, overlap=2, mix=0.25)
    _, states, _ = of_streaming(**fields)
    _, plain, _ = of_streaming(sync_period=6, fragments=2)
    # The sync of fragment 0 is after step 3: without overlap at its end, else beside
    # step 4, from the same weights.
    assert_close(states[3]["params"], plain[2]["params"], 1e-6)
    assert_same_bits(states[2]["params"], states[0]["params"])
    never = functools.partial(use_diloco, num_replicas=2, sync_period=100)
    _, alone, _ = train(tiny.experiment(never), 5)
    assert_close(states[3]["replicas"]["params"], alone[3]["replicas"]["params"], 1e-6)
    own, outer = (kernel(x["params"]) for x in (alone[4]["replicas"], states[3]))
    expected = own.copy()
    expected[:, [0, 2]] = 0.25 * own[:, [0, 2]] + 0.75 * outer[None, [0, 2]]
    assert_close(kernel(states[4]["replicas"]["params"]), expected, 1e-6)


@pytest.mark.slow
def test_with_eager_updates_replicas_go_on_at_once_from_outer_weights_of_their_own():
    """The first sync, after step 3, is at the beginning of step 4."""
    fields = dict(sync_period=6, fragments=2, overlap=1, eager=True)
    _, states, _ = of_streaming(**fields, learning_rate=30.0)
    outer, own = (kernel(x["params"]) for x in (states[2], states[2]["replicas"]))
    deltas = (outer - own)[:, [0, 2]]
    after = states[3]["replicas"]
    base, others = (kernel(after["eager"][name]) for name in ("outer", "others"))
    step = 30.0 * 1.9  # the first of Nesterov's
    expected = outer[None, [0, 2]] - step * deltas / 2
    np.testing.assert_allclose(base[:, [0, 2]], expected, atol=1e-5)
    np.testing.assert_allclose(others[:, [0, 2]], deltas[::-1] / 2, atol=1e-6)
    whole = outer[[0, 2]] - step * deltas.mean(axis=0)
    np.testing.assert_allclose(kernel(states[3]["params"])[[0, 2]], whole, atol=1e-5)
    # They are one step of Adam away, where the sync has moved them further.
    distances = [np.abs(x - base)[:, [0, 2]] for x in (kernel(after["params"]), own)]
    assert 0 < np.max(distances[0]) < 0.02 < np.max(distances[1])


def test_one_fragment_without_overlap_and_mix_is_plain_diloco_bit_by_bit():
    """Their graphs are equal."""
    plain = tiny.experiment(two)
    one = tiny.experiment(functools.partial(two, fragments=1, overlap=0, mix=0.0))
    assert plain == one


@pytest.mark.slow
@pytest.mark.parametrize("eager", [False, True])
def test_a_sync_exchanges_a_fragment_and_an_overlap_leaves_it_free(eager):
    across = {"replica": 2, "data": 2, "fsdp": 1}
    config = tiny.experiment(streaming(sync_period=6, overlap=1, eager=eager))
    for name, size in across.items():
        setattr(config.mesh, name, size)
    program = tiny.program(config, 4)
    text = program.compile_step().run.as_text()
    always, at_sync = hlo.crossing(text, devices=2)
    assert always == []
    parameters = program.trainer.model.parameters()
    sizes = [
        sum(4 * p.size for p in jax.tree.leaves(fragment.declared(parameters)))
        for fragment in Streaming(fragments=2).plan(parameters)
    ]
    reduced = sorted(c.payload for c in at_sync if c.payload > 64)
    np.testing.assert_allclose(reduced, sorted(sizes), atol=16)
    assert hlo.is_independent(text, devices=2)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (dict(sync_period=5), "fragments (2) must divide trainer.sync_period (5)"),
        (dict(overlap=2), "overlap (2) must be below the 2 steps between the syncs"),
        (dict(overlap=-1), "overlap (-1) must not be negative"),
        (dict(mix=1.5), "mix (1.5) must be from 0 to 1"),
        (dict(fragments=0), "fragments (0) must be at least 1"),
        (dict(eager=True), "eager updates hide the exchange behind the steps after"),
        (dict(eager=True, overlap=1, mix=0.5), "mix (0.5) must be 0 with eager"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields, problem):
    with pytest.raises(ConfigError) as error:
        graph.build(tiny.experiment(streaming(**fields)))
    assert f"Streaming {problem}" in str(error.value)


def test_more_fragments_than_layers_are_refused():
    with pytest.raises(UserError) as error:
        tiny.program(tiny.experiment(streaming(fragments=4)))
    assert str(error.value).startswith(
        "Streaming fragments (4) must be at most the number of layers that are trained"
        " (3)"
    )
