"""What Linen layers are made of: parameters and state that know themselves."""

from collections.abc import Callable
from typing import Any, cast

import jax
from flax import linen as nn
from flax import struct

from maxfdl.layers.parameter import Parameter


class Module(nn.Module):
    """Base of the layers of this family."""


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter's value in the box that carries its declaration out of `init`."""

    value: Any
    declaration: Parameter = struct.field(pytree_node=False)

    def unbox(self, apply_constraint: bool = True) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        raise AssertionError("stacks are made by Stack, not by nn.vmap or nn.scan")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        return self.add_axis(index, params)


def param(module: nn.Module, name: str, declaration: Parameter) -> jax.Array:
    """Returns the parameter `name` of `module`, drawn fresh under `init`."""

    def draw(key: jax.Array) -> Declared:
        return Declared(declaration.draw(key), declaration)

    return cast(jax.Array, module.param(name, draw))  # Linen unboxes it


def stacked_variable(
    module: nn.Module,
    collection: str,
    name: str,
    repeats: int,
    init: Callable[[jax.Array], Any],
) -> Any:
    """Returns the arrays of `repeats` layers as one variable, a tree of its own.

    `init(key)` gives the variables of one layer, by collection. A layer that has
    none in this collection has an empty tree.
    """

    def draw_one(key: jax.Array) -> Any:
        return init(key).get(collection, {})

    if module.is_initializing():
        keys = jax.random.split(module.make_rng("params"), repeats)
        tree = _declared_stacked(jax.vmap(draw_one)(keys), repeats)
        put_if_any(module, collection, name, tree)
    return nn.meta.unbox(module.get_variable(collection, name, {}))


def put_if_any(module: nn.Module, collection: str, name: str, tree: Any) -> None:
    """Stores a tree of variables, unless it has no leaves."""
    if jax.tree.leaves(tree):
        module.put_variable(collection, name, tree)


def _declared_stacked(tree: Any, repeats: int) -> Any:
    """Tells each box in `tree` that its value is now that of a stack."""

    def tell(leaf: Any) -> Any:
        if not isinstance(leaf, Declared):
            return leaf
        return leaf.replace(declaration=leaf.declaration.stacked(repeats))

    return jax.tree.map(tell, tree, is_leaf=lambda leaf: isinstance(leaf, Declared))
