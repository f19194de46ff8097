"""Kernels in a few bits, through a whole model: drawn, trained beside, decoded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdl_configs.models.llama import smollm2_135m
from maxfdl import graph, mutations
from maxfdl.errors import MutationError
from maxfdl.inference import generate
from maxfdl.layers.frozen import frozen, trained
from maxfdl.layers.parameter import wholes
from maxfdl.ops.codec import Codec
from tests import tiny

INT4 = functools.partial(mutations.quantize_weights, format="int4", group=6)

HEAD = functools.partial(mutations.quantize_weights, only=("head",))


@functools.cache
def made(*changes):
    model = graph.build(tiny.experiment(*changes)).make_model()
    return model, jax.jit(model.init)(jax.random.key(0))


def storages(cfg, **arguments):
    """Paths of the layers that `quantize_weights` gives a storage."""
    out = mutations.quantize_weights(cfg, **arguments)
    return [
        path
        for path, node in graph.iterate(out.model)
        if getattr(node, "storage", None) is not None
    ]


def test_all_projections_are_packed_and_the_rest_is_as_it_was():
    plain, packed = made()[0].parameters(), made(INT4)[0].parameters()
    assert jax.tree.structure(wholes(packed)) == jax.tree.structure(plain)
    assert {each.role for each in jax.tree.leaves(frozen(packed, packed))} == {"kernel"}
    roles = {each.role for each in jax.tree.leaves(trained(packed))}
    assert roles == {"embedding", "scale", "kernel"}  # the head's


def test_products_are_selected_as_those_of_fp8():
    cfg = tiny.experiment()
    assert len(storages(cfg)) == 7
    assert len(storages(cfg, only=("mlp",))) == 3
    (path,) = storages(cfg, only=("attention",), skip=("**.query", "**.key", "**.out"))
    assert path.endswith("attention.value")


def test_a_head_that_is_the_embedding_table_stays_as_it_is():
    with pytest.raises(MutationError, match="head is the embedding table"):
        HEAD(smollm2_135m())


@pytest.mark.slow
def test_the_loss_by_tiles_is_that_of_a_packed_head():
    tiled = functools.partial(mutations.vocab_tiling, num_tiles=2)
    losses, state = tiny.train(tiny.experiment(HEAD, tiled), 2)
    expected, _ = tiny.train(tiny.experiment(HEAD), 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert state["params"]["head"]["kernel"].dtype == jnp.int8


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(format="int3"),
            r"quantize_weights format \('int3'\) must be one of int8",
        ),
        (dict(format="mxfp4", group=16), r"group \(16\) has no meaning for mxfp4"),
        (dict(only=("mpl",)), r"quantize_weights \[mpl\] must match .* mean 'mlp'"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, message):
    with pytest.raises(MutationError, match=message):
        mutations.quantize_weights(tiny.experiment(), **arguments)


def test_formats_and_groups_are_those_of_the_codec():
    def codec(**arguments):
        cfg = mutations.quantize_weights(tiny.experiment(), **arguments)
        return graph.build(cfg.model.decoder.stacks[0].layers[0].mlp.up.storage)

    assert codec(format="fp8", group=64) == Codec("e4m3", 64, 64)
    assert codec(format="nf4") == Codec("nf4", 64)
    assert codec(format="mxfp4") == Codec("e2m1", 32, 1, "e8m0")


def test_training_changes_what_is_not_packed():
    config = tiny.experiment(INT4)
    start = tiny.begin(tiny.program(config))["params"]
    losses, state = tiny.train(config, 2)
    declared = made(INT4)[0].parameters()
    before, after = frozen(declared, start), frozen(declared, state["params"])
    jax.tree.map(np.testing.assert_array_equal, before, after)
    changed = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)),
        trained(declared, start),
        trained(declared, state["params"]),
    )
    assert all(jax.tree.leaves(changed)) and np.all(np.isfinite(losses))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["to_linen", "unroll_layers", "compute_dtype", "remat", "mesh"]
)
def test_losses_are_those_of_the_plain_model(name):
    changes = {"remat": dict(policy="full"), "mesh": dict(data=2, fsdp=2)}
    change = functools.partial(getattr(mutations, name), **changes.get(name, {}))
    devices = 4 if name == "mesh" else 1
    losses, _ = tiny.train(tiny.experiment(INT4, change), 3, devices)
    expected, _ = tiny.train(tiny.experiment(INT4), 3)
    rtol = {"to_linen": 0, "compute_dtype": 0.02}.get(name, 1e-5)
    np.testing.assert_allclose(losses, expected, rtol=rtol)


@pytest.mark.parametrize(
    "change", [INT4, pytest.param(HEAD, marks=pytest.mark.slow)], ids=["layers", "head"]
)
def test_generation_is_that_of_the_numbers_that_are_stored(change):
    model, variables = made(change)
    plain, _ = made()
    prompts = [[5, 9, 2], [1, 2, 3, 4, 5, 6, 7]]
    params = unpacked(model.parameters(), variables["params"])
    expected = generate(
        plain, {**variables, "params": params}, prompts, max_new_tokens=9
    )
    assert generate(model, variables, prompts, max_new_tokens=9) == expected


def unpacked(declared, params):
    """Returns parameters with the whole kernels in place of their parts."""
    result = {}
    for name, node in declared.items():
        if isinstance(node, dict):
            result[name] = unpacked(node, params[name])
        elif node.packing is None:
            result[name] = params[name]
        elif node.packing.part == "codes":
            scales = params[f"{name}_scale"]
            result[name] = node.packing.kernel(params[name], scales).unpacked()
    return result
