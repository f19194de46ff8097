"""Training on eight devices gives the losses of one, and every device its part."""

import functools

import jax
import numpy as np
import pytest

from maxfdl.mutations import mesh, to_linen
from tests import tiny
from tests.layers.families import assert_same_bits

MESHES = {
    "data 8": dict(data=8),
    "fsdp 8": dict(fsdp=8),
    "fsdp 4, tensor 2": dict(fsdp=4, tensor=2),
}
FAMILIES = ["nnx", pytest.param("linen", marks=pytest.mark.slow)]
STEPS = 10
LAYER = "decoder/stacks_0/layers_0"
# What one device holds of each array, by hand. Whole: 3 layers, width 16, 4 heads and
# 2 of keys, of width 8, hidden width 32, 64 tokens.
SHARDS = {
    "fsdp 8": {
        "embedding/table": (64, 2),
        f"{LAYER}/attention_norm/scale": (3, 16),
        f"{LAYER}/attention/query/kernel": (3, 2, 4, 8),
        f"{LAYER}/attention/key/kernel": (3, 2, 2, 8),
        f"{LAYER}/attention/value/kernel": (3, 2, 2, 8),
        f"{LAYER}/attention/out/kernel": (3, 4, 8, 2),
        f"{LAYER}/mlp_norm/scale": (3, 16),
        f"{LAYER}/mlp/gate/kernel": (3, 2, 32),
        f"{LAYER}/mlp/up/kernel": (3, 2, 32),
        f"{LAYER}/mlp/down/kernel": (3, 32, 2),
        "final_norm/scale": (16,),
        "head/kernel": (2, 64),
    },
    "fsdp 4, tensor 2": {
        "embedding/table": (32, 4),
        f"{LAYER}/attention_norm/scale": (3, 16),
        f"{LAYER}/attention/query/kernel": (3, 4, 2, 8),
        f"{LAYER}/attention/key/kernel": (3, 4, 1, 8),
        f"{LAYER}/attention/value/kernel": (3, 4, 1, 8),
        f"{LAYER}/attention/out/kernel": (3, 2, 8, 4),
        f"{LAYER}/mlp_norm/scale": (3, 16),
        f"{LAYER}/mlp/gate/kernel": (3, 4, 16),
        f"{LAYER}/mlp/up/kernel": (3, 4, 16),
        f"{LAYER}/mlp/down/kernel": (3, 16, 4),
        "final_norm/scale": (16,),
        "head/kernel": (4, 32),
    },
}


@functools.cache
def trained(name, family):
    mutations = [functools.partial(mesh, **MESHES[name])]
    mutations += [to_linen] if family == "linen" else []
    return tiny.train(tiny.experiment(*mutations), STEPS, devices=8)


def shards(tree):
    """Returns by path what the devices hold of each array; all hold the same shape."""
    found = {}
    for path, array in jax.tree_util.tree_leaves_with_path(tree):
        shapes = {shard.data.shape for shard in array.addressable_shards}
        assert len(array.addressable_shards) == 8 and len(shapes) == 1
        found["/".join(entry.key for entry in path)] = shapes.pop()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MESHES)
def test_losses_are_those_of_one_device(name, family):
    losses, _ = trained(name, family)
    alone, _ = tiny.one_device(20)
    np.testing.assert_allclose(losses, alone[:STEPS], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SHARDS)
def test_no_parameter_is_replicated_that_the_rules_shard(name, family):
    _, state = trained(name, family)
    assert shards(state["params"]) == SHARDS[name]
    moments = state["optimizer"][1]  # after clipping
    assert shards(moments.mu) == shards(moments.nu) == SHARDS[name]


@pytest.mark.parametrize(
    "name", [pytest.param("fsdp 8", marks=pytest.mark.slow), "fsdp 4, tensor 2"]
)
def test_the_first_weights_are_drawn_in_place_and_are_those_of_one_device(name):
    config = tiny.experiment(functools.partial(mesh, **MESHES[name]))
    state = tiny.program(config, 8).init()
    assert shards(state["params"]) == SHARDS[name]
    assert_same_bits(state["params"], tiny.program(tiny.experiment()).init()["params"])


def test_data_parallel_replicas_hold_all():
    _, state = trained("data 8", "nnx")
    whole = {path: shape for path, shape in shards(state["params"]).items()}
    _, alone = tiny.one_device(20)
    assert list(whole.values()) == [x.shape for x in jax.tree.leaves(alone["params"])]


def test_rows_of_the_batch_are_spread_over_the_devices():
    program = tiny.program(tiny.experiment(), 8)
    placed = program.place(tiny.batch(0))
    assert set(shards(placed).values()) == {(1, tiny.LENGTH)}
