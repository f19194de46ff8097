"""Whatever a layer multiplies with its kernel is told to the product that it holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct
from maxfdl.ops.state import StateDeclaration
from tests.layers.families import CASES, FAMILIES, on_vectors, packed_tokens

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

    def __call__(self, x, kernel, state, sizes):
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
