"""Mutations of what the backward pass keeps: they change memory, and no number."""

import functools
from typing import get_args

import jax
import numpy as np
import pytest

from experiments import zoo_smoke
from maxfdl import graph
from maxfdl.errors import ConfigError, MutationError
from maxfdl.layers.execution import Name
from maxfdl.mutations import (
    mesh,
    offload_activations,
    remat,
    to_linen,
    unroll_layers,
)
from tests import tiny
from tests.layers.families import assert_same_bits
from tests.layers.test_remat import named_tensors
from tests.mutations.cases import apply

STEPS = 3
KEPT = {
    "names saved": functools.partial(remat, save=("query", "mlp_up")),
    "input offloaded": offload_activations,
    "names offloaded too": functools.partial(
        offload_activations, names=("layer_in", "attention_out"), save=("mlp_gate",)
    ),
}
SLOW = KEPT.keys() - {"names offloaded too"}


def on_the_mesh(*mutations):
    """Trains with parameters, rows and widths cut on eight devices."""
    cut = functools.partial(mesh, data=2, fsdp=2, tensor=2)
    return tiny.train(tiny.experiment(cut, *mutations), STEPS, devices=8)


@functools.cache
def reference():
    return on_the_mesh()


@pytest.mark.parametrize(
    "kept", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in KEPT]
)
@pytest.mark.slow
def test_losses_on_a_mesh_are_the_same_whatever_is_kept(kept):
    losses, _ = reference()
    found, state = on_the_mesh(KEPT[kept])
    np.testing.assert_allclose(found, losses, rtol=0, atol=1e-6)
    linen, state_of_linen = on_the_mesh(KEPT[kept], to_linen)
    assert linen == found
    assert_same_bits(state_of_linen, state)


@pytest.mark.slow
def test_losses_on_a_mesh_are_the_same_without_a_loop():
    losses, _ = reference()
    for kept in KEPT.values():
        found, _ = on_the_mesh(kept, unroll_layers)
        np.testing.assert_allclose(found, losses, rtol=0, atol=1e-6)


def test_a_policy_and_names_are_not_given_together():
    message = r"remat policy \(dots\) must be full .* leave it out to save query, key\."
    with pytest.raises(MutationError, match=message):
        remat(tiny.experiment(), policy="dots", save=("query", "key"))


def may_be_saved(config, name):
    try:
        remat(config, save=(name,))
    except MutationError:
        return False
    return True


@pytest.mark.parametrize("backend", [lambda cfg: cfg, to_linen], ids=["nnx", "linen"])
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "deepseek_v3", "qwen3_next"])
def test_only_what_the_layers_give_may_be_saved(family, backend):
    config = backend(zoo_smoke.experiment(family))
    made = graph.build(config)
    model = made.make_trainer(made.make_sharding(jax.devices()[:1])).model
    variables = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 16), "int32")
    traced = jax.make_jaxpr(lambda *args: model.apply(*args).hidden)(variables, tokens)
    given = {name for name, _ in named_tensors(traced.jaxpr)}
    assert {name for name in get_args(Name) if may_be_saved(config, name)} == given


def test_a_tensor_that_no_layer_gives_is_named_with_those_there_are():
    message = r"gives expert_up; they give attention_out, .*, mlp_up, query, value\."
    with pytest.raises(MutationError, match=message):
        remat(tiny.experiment(), save=("query", "expert_up"))
    with pytest.raises(MutationError, match="gives router_logits;"):
        offload_activations(tiny.experiment(), save=("router_logits",))


def test_a_misspelt_name_is_the_item_that_is_refused():
    message = (
        r"save\[1\]=mlp_upp: expected Literal\['layer_in', .*'mlp_upp'\. Did you m"
    )
    with pytest.raises(ConfigError, match=message):
        apply(tiny.experiment(), "remat(save=['query', 'mlp_upp'])")
