"""A kernel that is trained for a storage is used as that storage would give it back."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.layers.parameter import Parameter
from maxfdl.ops.codec import Codec, Simulated
from maxfdl.ops.initializers import Constant
from maxfdl.ops.straight_through import straight_through
from tests.layers.families import CASES, FAMILIES, packed_tokens

CODECS = {
    "int4": Codec("int4", inputs=5),
    "int8": Codec("int8"),
    "nf4": Codec("nf4", inputs=3),
    "fp8": Codec("e4m3", inputs=3, outputs=4),
    "mxfp4": Codec("e2m1", inputs=3, scales="e8m0"),
}


def model(layer, storage, family="nnx"):
    """A layer behind an embedding, with a storage."""
    case = CASES[layer]

    def factory(family):
        return functools.partial(case.factory(family), storage=storage)

    return dataclasses.replace(case, factory=factory).model(family)


def hidden(model, variables):
    return jax.jit(model.apply)(variables, **packed_tokens()).hidden


@pytest.mark.parametrize(
    ("layer", "name", "family"),
    [
        ("GroupedLinear", "fp8", "nnx"),
        *[
            pytest.param(layer, name, family, marks=pytest.mark.slow)
            for layer in ("Linear", "GroupedLinear")
            for name in CODECS
            for family in FAMILIES
            if (layer, name, family) != ("GroupedLinear", "fp8", "nnx")
        ],
    ],
)
def test_what_it_computes_is_what_the_stored_kernel_computes(layer, name, family):
    codec, key = CODECS[name], jax.random.key(0)
    trained = model(layer, Simulated(codec), family)
    packed, plain = model(layer, codec, family), model(layer, None, family)
    variables = trained.init(key)
    jax.tree.map(np.testing.assert_array_equal, variables, plain.init(key))
    packing = packed.parameters()["layer"]["kernel"].packing
    parts = packed.init(key)["params"]["layer"]
    kernel = packing.kernel(parts["kernel"], parts["kernel_scale"]).unpacked()
    params = variables["params"]
    layer_params = {**params["layer"], "kernel": kernel}
    stored = {**variables, "params": {**params, "layer": layer_params}}
    ours = hidden(trained, variables)
    np.testing.assert_array_equal(ours, hidden(plain, stored))
    assert np.any(ours != hidden(plain, variables))


@pytest.mark.parametrize("name", CODECS)
def test_a_program_rounds_to_the_bits_that_are_packed_on_the_host(name):
    codec = CODECS[name]
    kernel = np.random.default_rng(0).normal(size=(30, 24)).astype(np.float32)
    here = codec.encode(kernel)
    there = jax.jit(codec.encode)(jnp.asarray(kernel))
    jax.tree.map(np.testing.assert_array_equal, here, jax.device_get(there))


def test_the_gradient_is_that_of_a_plain_kernel_with_the_stored_numbers():
    codec = CODECS["int4"]
    trained, plain = model("Linear", Simulated(codec)), model("Linear", None)
    variables = trained.init(jax.random.key(0))
    declared = trained.parameters()["layer"]["kernel"]

    def gradient(model, params):
        def loss(params):
            return jnp.sum(hidden(model, {**variables, "params": params}) ** 2)

        return jax.grad(loss)(params)

    params = variables["params"]
    kernel = params["layer"]["kernel"]
    stored = {**params["layer"], "kernel": declared.simulated(kernel)}
    ours = gradient(trained, params)
    expected = gradient(plain, {**params, "layer": stored})
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


def test_groups_lie_along_the_contracted_dims_together():
    kernel = Parameter(
        (2, 3, 4, 5),
        ("experts", "heads", "head_dim", "embed"),
        Constant(),
        "kernel",
        contracted=2,
        batched=1,
        simulates=Codec("int8", inputs=6),
    )
    values = np.random.default_rng(0).normal(size=kernel.shape).astype(np.float32)
    seen = kernel.simulated(jnp.asarray(values))
    groups = values.reshape(2, 2, 6, 5)
    scale = np.max(np.abs(groups), 2, keepdims=True) / np.float32(127)
    expected = np.rint(groups / scale) * scale
    np.testing.assert_allclose(seen, expected.reshape(kernel.shape), rtol=1e-6)


def test_what_is_no_number_stays_and_gradients_have_the_type_of_parameters():
    x = jnp.array([1.2, jnp.nan, jnp.inf], jnp.bfloat16)
    y, pull = jax.vjp(functools.partial(straight_through, jnp.rint), x)
    np.testing.assert_array_equal(y, [1.0, np.nan, np.inf])
    (dx,) = pull(jnp.array([0.5, 0.25, 0.125]))
    assert y.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.float32(dx), [0.5, 0.25, 0.125])
