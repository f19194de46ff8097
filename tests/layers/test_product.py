"""Whatever a layer multiplies with its kernel is told to the product that it holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.codec import Codec
from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct
from maxfdl.ops.state import StateDeclaration
from tests.layers.families import CASES, FAMILIES, on_vectors, packed_tokens

INT4 = Codec("int4", inputs=6)
GREATEST = StateDeclaration((), (), merge="max")


@dataclasses.dataclass(frozen=True)
class WatchedDot(MatrixProduct):
    """Leaves the greatest number of its input."""

    def declare(self, kernel):
        return {"x": GREATEST}

    def __call__(self, x, kernel, state, **kwargs):
        return Dot()(x, kernel, {}, **kwargs)[0], {"x": jnp.max(jnp.abs(x))}

    def backward(self, x, kernel, dy, **kwargs):
        return Dot().backward(x, kernel, dy, **kwargs)


@dataclasses.dataclass(frozen=True)
class WatchedGroups(GroupedProduct):
    """Leaves the greatest number of its rows."""

    def declare(self, kernel):
        return {"x": GREATEST}

    def __call__(self, x, kernel, state, sizes, expected=None):
        return GroupedDot()(x, kernel, {}, sizes)[0], {"x": jnp.max(jnp.abs(x))}


def in_another_order(layer, tokens, embedding, context):
    x, here = embedding(tokens, context), context.at("layer")
    return layer.einsum("btd,dhk->bthk", x, here)


PRODUCTS = {
    "a projection": ("Linear", WatchedDot(), on_vectors),
    "an einsum": ("Linear", WatchedDot(), in_another_order),
    "experts": ("GroupedLinear", WatchedGroups(), CASES["GroupedLinear"].call),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_the_state_of_a_product_is_that_of_its_layer(name, family):
    layer, dot, call = PRODUCTS[name]
    plain = dataclasses.replace(CASES[layer], call=call)
    watched = dataclasses.replace(
        plain,
        factory=lambda family: functools.partial(plain.factory(family), dot=dot),
    )
    model, inputs = watched.model(family), packed_tokens()
    assert model.state() == {"layer": {"dot_x": GREATEST}}
    variables = model.init(jax.random.key(0))
    out = model.apply(variables, **inputs)
    x = variables["params"]["embedding"]["table"][inputs["tokens"]]
    np.testing.assert_array_equal(out.state["layer"]["dot_x"], jnp.max(jnp.abs(x)))
    without = plain.model(family).apply({**variables, "state": {}}, **inputs)
    np.testing.assert_array_equal(out.hidden, without.hidden)


def with_storage(case, codec):
    return dataclasses.replace(
        case,
        factory=lambda family: functools.partial(case.factory(family), storage=codec),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_packed_kernel_multiplies_as_its_numbers_do(name, family):
    layer, _, call = PRODUCTS[name]
    plain = dataclasses.replace(CASES[layer], call=call)
    model, packed = plain.model(family), with_storage(plain, INT4).model(family)
    declared, inputs = packed.parameters()["layer"], packed_tokens()
    assert not declared["kernel"].trained and not declared["kernel_scale"].trained
    variables, of_packed = (m.init(jax.random.key(0)) for m in (model, packed))
    stored = of_packed["params"]["layer"]
    parts = declared["kernel"].packing.encode(variables["params"]["layer"]["kernel"])
    np.testing.assert_array_equal(stored["kernel"], parts["codes"])
    np.testing.assert_allclose(stored["kernel_scale"], parts["scales"], rtol=1e-6)
    unpacked = declared["kernel"].packing.kernel(
        stored["kernel"], stored["kernel_scale"]
    )
    variables["params"]["layer"]["kernel"] = unpacked.unpacked()
    expected = model.apply(variables, **inputs).hidden
    y = packed.apply(of_packed, **inputs).hidden
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)

    def loss(embedding, model, variables):
        params = {**variables["params"], "embedding": embedding}
        return jnp.sum(
            jnp.sin(model.apply({**variables, "params": params}, **inputs).hidden)
        )

    both = [(model, variables), (packed, of_packed)]
    grads = [jax.grad(loss)(v["params"]["embedding"], m, v)["table"] for m, v in both]
    np.testing.assert_allclose(*grads, rtol=0, atol=1e-5)


def test_the_backward_pass_keeps_the_packed_kernel_alone():
    case = with_storage(CASES["Linear"], INT4)
    model, inputs = case.model("nnx"), packed_tokens()
    variables = model.init(jax.random.key(0))

    def hidden(embedding):
        params = {**variables["params"], "embedding": embedding}
        return model.apply({**variables, "params": params}, **inputs).hidden

    _, backward = jax.vjp(hidden, variables["params"]["embedding"])
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.dtype == jnp.float32]
    kernel = model.parameters()["layer"]["kernel"].whole.shape
    assert kernel not in {leaf.shape for leaf in kept}
