"""What Linen layers are made of: parameters and state that know themselves."""

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import jax
from flax import linen as nn
from flax import struct

from maxfdl.layers.context import Context
from maxfdl.layers.layer import Cell, Factory, Maker, StackedLayers, Weight, ends_in
from maxfdl.layers.layer import Module as AnyModule
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.product import Ends
from maxfdl.ops.state import StateDeclaration


class Module(nn.Module, AnyModule):
    """Base of the layers of this family.

    A subclass of a `Layer` too has the fields of the layer. The parts are made at each
    call, for Linen cannot keep a child under the name of the field that holds its
    factory.
    """

    @nn.compact
    def call_with_parts(self, method: Callable[..., Any], *args: Any) -> Any:
        maker = LinenMaker(self)
        self.make(maker)
        return method(self, maker.parts, *args)


class Param(Weight):
    """A parameter's value beside its declaration."""

    def __init__(self, value: jax.Array, declaration: Parameter):
        self._value = value
        self._declaration = declaration

    @property
    def stored(self) -> jax.Array:
        return self._value

    @property
    def declared(self) -> Parameter:
        return self._declaration


class State(Cell):
    """State in Linen's variable for it, beside its declaration."""

    def __init__(self, variable: nn.Variable, declaration: StateDeclaration):
        self._variable = variable
        self._declaration = declaration

    @property
    def declared(self) -> StateDeclaration:
        return self._declaration

    def read(self) -> jax.Array:
        return self._variable.value

    def _replace(self, value: jax.Array) -> None:
        self._variable.value = value


class LinenStackedLayers(StackedLayers):
    """Layers without a place of their own, and their arrays as variables of a module.

    Each layer's tree of parameters, of all repeats, is one variable, and so is that of
    its state, if it has some.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: dict[str, nn.Module],
        repeats: int,
        dim: str,
        ends: tuple[Ends, ...],
    ):
        self._module = module
        self._layers = layers
        self._repeats = repeats
        self._dim = dim
        self.ends = ends

    def arrays(self, x: jax.Array, context: Context) -> tuple[Any, Any]:
        if self._module.is_initializing():
            for name, layer in self._layers.items():
                self._start(name, layer, x, _to_declare(context, name))
        return self._trees("params"), self._trees("state")

    def _start(
        self, name: str, layer: nn.Module, x: jax.Array, context: Context
    ) -> None:
        keys = jax.random.split(self._module.make_rng("params"), self._repeats)
        trees = jax.vmap(lambda key: layer.init(key, x, context))(keys)
        for collection in ("params", "state"):
            tree = _declared_stacked(
                trees.get(collection, {}), self._repeats, self._dim
            )
            self._put_if_any(collection, name, tree)

    def _trees(self, collection: str) -> dict[str, Any]:
        get = self._module.get_variable
        return {n: nn.meta.unbox(get(collection, n, {})) for n in self._layers}

    def states(
        self, state: Any, x: jax.Array, context: Context
    ) -> list[StateDeclaration]:
        return self._declared("state", x, context) if jax.tree.leaves(state) else []

    def parameters(
        self, params: Any, x: jax.Array, context: Context
    ) -> list[Parameter]:
        return self._declared("params", x, context)

    def _declared(self, collection: str, x: jax.Array, context: Context) -> list[Any]:
        """Returns the declarations of all arrays of a collection, in order."""

        def made(name: str, layer: nn.Module) -> Any:
            inner = _to_declare(context, name)
            made = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, inner))
            return made.get(collection, {})

        boxes = jax.tree.leaves(
            {name: made(name, layer) for name, layer in self._layers.items()},
            is_leaf=lambda leaf: isinstance(leaf, Declared),
        )
        return [box.declaration.stacked(self._repeats, self._dim) for box in boxes]

    def run(
        self, params: Any, state: Any, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Any]:
        new_state = {}
        for i, (name, layer) in enumerate(self._layers.items()):
            arrays = {"params": params[name], "state": state[name]}
            told = context.in_cycle(i, len(self._layers))
            x, new = layer.apply(arrays, x, told, mutable=["state"])
            new_state[name] = new.get("state", {})
        return x, new_state

    def keep(self, state: Any) -> None:
        if self._module.is_initializing():
            return  # `init` returns the values before the first step
        for name in self._layers:
            self._put_if_any("state", name, state[name])

    def _put_if_any(self, collection: str, name: str, tree: Any) -> None:
        if jax.tree.leaves(tree):
            self._module.put_variable(collection, name, tree)


def _to_declare(context: Context, name: str) -> Context:
    """Returns the context in which a layer declares its parts: at no depth, for what is
    declared is the same in all repeats, and on no mesh, for its arrays are whole."""
    told = dataclasses.replace(context.for_layer(0), sharding=None)
    return told.at_depth(None).at(name)


class LinenMaker(Maker):
    """Makes parts of a module that runs, and collects them in `parts`."""

    def __init__(self, module: Module):
        self._module = module
        self.parts = SimpleNamespace()

    def _keep(self, name: str, part: Any) -> None:
        setattr(self.parts, name, part)

    def child(self, name: str, factory: Factory | None, **fields: Any) -> None:
        self._keep(name, factory and factory(**fields, name=name))

    def children(self, name: str, factories: Sequence[Factory], **fields: Any) -> None:
        named = enumerate(factories)
        self._keep(name, [make(**fields, name=f"{name}_{i}") for i, make in named])

    def stacked(
        self,
        name: str,
        factories: Sequence[Factory],
        repeats: int,
        dim: str,
        **fields: Any,
    ) -> None:
        layers = {
            f"{name}_{i}": factory(**fields, parent=None)
            for i, factory in enumerate(factories)
        }
        ends = ends_in(factories)
        made = LinenStackedLayers(self._module, layers, repeats, dim, ends)
        self._keep(name, made)

    def parameter(self, name: str, declaration: Parameter | None) -> None:
        self._keep(name, declaration and self._param(name, declaration))

    def _param(self, name: str, declaration: Parameter) -> Param:
        return Param(param(self._module, name, declaration), declaration)

    def state(self, name: str, declaration: StateDeclaration | None) -> None:
        self._keep(name, declaration and self._state(name, declaration))

    def _state(self, name: str, declaration: StateDeclaration) -> State:
        return State(state(self._module, name, declaration), declaration)


class Declared(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A variable's value in the box that carries its declaration out of `init`."""

    value: Any
    declaration: Parameter | StateDeclaration = struct.field(pytree_node=False)

    def unbox(self, apply_constraint: bool = True) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Declared":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        raise AssertionError("stacks are made by Stack, not by nn.vmap or nn.scan")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Declared":
        return self.add_axis(index, params)


def param(module: nn.Module, name: str, declaration: Parameter) -> jax.Array:
    """Returns the parameter `name` of `module`, drawn fresh under `init`.

    What is there is not compared with what would be drawn, as Linen does, for it may be
    the shard of one device.
    """
    if module.has_variable("params", name):
        return nn.meta.unbox(module.get_variable("params", name))

    def draw(key: jax.Array) -> Declared:
        return Declared(declaration.draw(key), declaration)

    return cast(jax.Array, module.param(name, draw))  # Linen unboxes it


def state(
    module: nn.Module, name: str, declaration: StateDeclaration
) -> nn.Variable[Any]:
    """Returns the state `name` of `module` as a variable, at its start under `init`."""

    def start() -> Declared:
        return Declared(declaration.first(), declaration)

    return module.variable("state", name, start)


def _declared_stacked(tree: Any, repeats: int, dim: str) -> Any:
    """Tells each box in `tree` that its value is now that of a stack."""

    def tell(leaf: Any) -> Any:
        if not isinstance(leaf, Declared):
            return leaf
        return leaf.replace(declaration=leaf.declaration.stacked(repeats, dim))

    return jax.tree.map(tell, tree, is_leaf=lambda leaf: isinstance(leaf, Declared))
