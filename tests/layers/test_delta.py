"""Gated DeltaNet against Hugging Face's, in packed rows, and one token at a time."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from maxfdl.layers.cache import EmptyCache
from maxfdl.layers.execution import Scan, Unroll
from maxfdl.ops.delta_rule import GatedDeltaRule
from maxfdl.ops.initializers import FanIn
from maxfdl.ops.mask import NOWHERE
from tests.goldens import Golden, tolerance
from tests.layers.families import (
    FAMILIES,
    FEATURES,
    VOCAB,
    Case,
    decoder_layer,
    gated_delta_net,
    on_vectors,
    stack,
)

# Outputs are up to 6.3 here. The same two layers, compiled or not, differ by up to
# 9e-6, and in chunks of 2 and of 4 by 5e-6; a document that begins at a wrong token,
# by 5.
ATOL = tolerance(0.0)
FILE = pathlib.Path(__file__).parents[1] / "goldens/gated_delta_net/golden.safetensors"


def golden() -> Golden:
    with safe_open(FILE, "np") as file:
        return Golden(FILE, json.loads(file.metadata()["info"]))


def from_theirs(tensors, config):
    """Returns their tensors, or gradients of them, as ours.

    They keep the projections of a key head and of its value heads side by side.
    """
    groups, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    key, value = config["linear_key_head_dim"], config["linear_value_head_dim"]
    features, each = config["hidden_size"], heads // groups

    def split(tensor, *widths):
        grouped = tensor.T.reshape(features, groups, -1)
        return np.split(grouped, np.cumsum(widths), axis=-1)

    q, k, v, z = split(tensors["in_proj_qkvz.weight"], key, key, each * value)
    b, a = split(tensors["in_proj_ba.weight"], each)
    taps = tensors["conv1d.weight"][:, 0].T
    convolutions = np.split(taps, [groups * key, 2 * groups * key], axis=-1)
    width = len(taps)
    kernels = {
        "query": q,
        "key": k,
        "value": v.reshape(features, heads, value),
        "output_gate": z.reshape(features, heads, value),
        "beta": b.reshape(features, heads),
        "decay": a.reshape(features, heads),
        "query_conv": convolutions[0].reshape(width, groups, key),
        "key_conv": convolutions[1].reshape(width, groups, key),
        "value_conv": convolutions[2].reshape(width, heads, value),
        "out": tensors["out_proj.weight"].T.reshape(heads, value, features),
    }
    return {
        **{name: {"kernel": kernel} for name, kernel in kernels.items()},
        "norm": {"scale": tensors["norm.weight"]},
        "a_log": tensors["A_log"],
        "dt_bias": tensors["dt_bias"],
    }


def of_shape(config):
    def factory(family):
        return functools.partial(
            gated_delta_net(family),
            convolution=functools.partial(
                family.CausalConvolution,
                width=config["linear_conv_kernel_dim"],
                initializer=FanIn(),
            ),
            delta_rule=GatedDeltaRule(chunk=32),
            norm=functools.partial(family.GatedRMSNorm, epsilon=config["rms_norm_eps"]),
            num_key_heads=config["linear_num_key_heads"],
            num_value_heads=config["linear_num_value_heads"],
            key_dim=config["linear_key_head_dim"],
            value_dim=config["linear_value_head_dim"],
        )

    return factory


def chosen(tensors, prefix):
    named = tensors.items()
    return {k.removeprefix(prefix): v for k, v in named if k.startswith(prefix)}


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_transformers(family):
    theirs = golden()
    config = theirs.info["config"]

    def on_inputs(layer, inputs, embedding, context):
        # Linen learns its parameters from a call with ids.
        is_ids = inputs.ndim == 2
        x = jnp.zeros((*inputs.shape, config["hidden_size"])) if is_ids else inputs
        return layer(x, context.at("layer"))

    model = Case(
        of_shape(config), {"features": config["hidden_size"]}, on_inputs
    ).model(family)
    params = model.init(jax.random.key(0))["params"]
    layer = from_theirs(chosen(theirs, "param."), config)
    assert jax.tree.map(np.shape, params["layer"]) == jax.tree.map(np.shape, layer)

    def run(layer, x):
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        variables = {"params": params | {"layer": layer}, "state": {}}
        y = model.apply(variables, x, positions=positions).hidden
        return jnp.sum(y * theirs["in.weight"]), y

    differentiate = jax.jit(jax.grad(run, (0, 1), has_aux=True))
    (gradients, gradient_x), y = differentiate(layer, theirs["in.x"])
    np.testing.assert_allclose(y, theirs["out.y"], atol=theirs.tolerance("out.y"))
    np.testing.assert_allclose(
        gradient_x, theirs["grad.x"], atol=theirs.tolerance("grad.x")
    )
    expected = from_theirs(chosen(theirs, "grad."), config)
    bounds = {
        name: np.full(theirs[f"grad.{name}"].shape, theirs.tolerance(f"grad.{name}"))
        for name in chosen(theirs, "param.")
    }
    jax.tree.map(
        lambda ours, golden, atol: np.testing.assert_array_less(
            np.abs(ours - golden), atol
        ),
        gradients,
        expected,
        from_theirs(bounds, config),
    )


def model_of(family, execution=None):
    """A stack of two layers that attend so."""

    def factory(family):
        layer = functools.partial(
            decoder_layer(family), attention=gated_delta_net(family)
        )
        return stack(family, layer, repeats=2, execution=execution or Scan())

    model = Case(factory, {"features": FEATURES}, on_vectors).model(family)
    return model, model.init(jax.random.key(3))


def some_tokens(rows, length):
    tokens = np.random.default_rng(length).integers(0, VOCAB, (rows, length))
    return jnp.asarray(tokens, jnp.int32)


@pytest.mark.slow
def test_packed_documents_read_as_they_would_alone():
    model, variables = model_of("nnx")
    tokens, lengths = some_tokens(1, 21), [5, 1, 8, 7]
    positions = jnp.concatenate([jnp.arange(n) for n in lengths])[None]
    ids = jnp.repeat(jnp.arange(4), jnp.array(lengths))[None] + 1
    packed = model.apply(variables, tokens, positions=positions, segment_ids=ids)
    end = 0
    for length in lengths:
        start, end = end, end + length
        alone = model.apply(variables, tokens[:, start:end])
        np.testing.assert_allclose(
            packed.hidden[:, start:end], alone.hidden, atol=ATOL, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "execution",
    [
        pytest.param(Scan(), id="scan"),
        pytest.param(Unroll(), id="unroll", marks=pytest.mark.slow),
    ],
)
def test_a_document_read_in_pieces_reads_as_a_whole(family, execution):
    model, variables = model_of(family, execution)
    tokens = some_tokens(2, 16)
    whole = model.apply(variables, tokens).hidden
    run = jax.jit(
        lambda tokens, positions, cache: model.apply(
            variables, tokens, positions=positions, cache=cache
        )
    )
    cache = EmptyCache(length=16)
    # A prompt, more of it, and then token by token. One row is always behind the other,
    # for the first prompt is shorter: its row is filled up with padding.
    lengths, read = np.array([6, 3]), np.array([0, 0])
    for width in (6, 5, 1, 1, 1):
        count = lengths if width == 6 else np.full(2, width)
        at = read[:, None] + np.arange(width)
        real = np.arange(width) < count[:, None]
        piece = jnp.take_along_axis(tokens, jnp.asarray(at % 16), axis=1)
        positions = jnp.asarray(np.where(real, at, NOWHERE), jnp.int32)
        if isinstance(cache, EmptyCache):
            out = model.apply(variables, piece, positions=positions, cache=cache)
        else:
            out = run(piece, positions, cache)
        for row in range(2):
            np.testing.assert_allclose(
                out.hidden[row, : count[row]],
                whole[row, read[row] : read[row] + count[row]],
                atol=ATOL,
                rtol=0,
            )
        cache, read = out.cache, read + count


def test_a_cache_does_not_grow_with_the_document():
    model, variables = model_of("nnx")
    caches = [
        jax.eval_shape(
            lambda tokens, n=n: (
                model.apply(variables, tokens, cache=EmptyCache(length=n)).cache
            ),
            some_tokens(2, n),
        )
        for n in (4, 16)
    ]
    assert caches[0] == caches[1]
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(caches[0]))
    convolutions = [(2, 2, 2, 2, 8), (2, 2, 2, 2, 8), (2, 2, 2, 4, 6)]
    assert shapes == sorted([*convolutions, (2, 2, 4, 8, 6)])


def test_without_a_cache_nothing_is_kept():
    model, variables = model_of("nnx")
    assert not model.apply(variables, some_tokens(1, 4)).cache


@pytest.mark.parametrize("family", FAMILIES)
def test_it_refuses_value_heads_that_keys_do_not_divide(family):
    cls = FAMILIES[family].GatedDeltaNet
    node = gated_delta_net(FAMILIES[family]).keywords
    wrong = type("Node", (), {**node, "num_value_heads": 5})
    (problem,) = cls.check_config(wrong)
    assert problem == (
        "GatedDeltaNet num_value_heads (5) must be a multiple of num_key_heads (2)."
    )
    (problem,) = FAMILIES[family].CausalConvolution.check_config(
        type("Node", (), {"width": 0})
    )
    assert problem == "CausalConvolution width (0) must be at least 1 token."
