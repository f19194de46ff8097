"""What NNX layers are made of: parameters and state that know themselves."""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx

from maxfdl.layers.context import Context
from maxfdl.layers.layer import (
    Cell,
    Factory,
    Layer,
    Maker,
    StackedLayers,
    Weight,
    ends_in,
)
from maxfdl.layers.layer import Module as AnyModule
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.product import Ends
from maxfdl.ops.state import StateDeclaration


class Module(nnx.Module, AnyModule):
    """Base of the layers of this family.

    A subclass of a `Layer` too gets a constructor, which takes the fields of the layer
    and `rngs`. The parts are its attributes, and so are the fields that the forward
    pass may read.
    """

    def __init_subclass__(cls, **kwargs: Any):
        if issubclass(cls, Layer) and "__init__" not in vars(cls):
            cls.__init__ = _constructor(cls.__bases__[0])
        super().__init_subclass__(**kwargs)

    def call_with_parts(self, method: Callable[..., Any], *args: Any) -> Any:
        return method(self, self, *args)


def _constructor(plain: type[Layer]) -> Callable[..., None]:
    """Returns the `__init__` of the NNX layer that has the parts of a `plain` one."""

    def __init__(self: Module, *, rngs: nnx.Rngs, **fields: Any) -> None:
        given = plain(**fields)
        given.make(NnxMaker(self, rngs))
        for name, value in vars(given).items():
            if name not in vars(self) and not _is_used_up(value):
                setattr(self, name, value)

    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    of_plain = inspect.signature(plain).parameters.values()
    of_family = keyword("rngs", annotation=nnx.Rngs)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    hints = typing.get_type_hints(plain, include_extras=True)
    __init__.__signature__ = inspect.Signature([first, *of_plain, of_family])
    __init__.__annotations__ = hints | {"rngs": nnx.Rngs}
    return __init__


def _is_used_up(field: Any) -> bool:
    """Says whether a field only served to make the parts: a factory, or dims.

    A module that kept it would not equal one of a second build of the same graph.
    """
    return isinstance(field, partial | type | Mapping | list)


class Param(nnx.Param, Weight):
    """A parameter that carries its declaration."""

    @property
    def stored(self) -> jax.Array:
        return self[...]

    @property
    def declared(self) -> Parameter:
        return declaration_of(self)


class State(nnx.Variable, Cell):
    """A value that a layer changes as it runs, and that carries its declaration."""

    @property
    def declared(self) -> StateDeclaration:
        return declaration_of(self)

    def read(self) -> jax.Array:
        return self[...]

    def _replace(self, value: jax.Array) -> None:
        self[...] = value


class NnxStackedLayers(nnx.List, StackedLayers):
    """Layers whose arrays have a leading dim; what runs is made of one slice of it."""

    def __init__(self, layers: Sequence[Module], ends: tuple[Ends, ...]):
        super().__init__(layers)
        self.ends = ends

    def arrays(self, x: jax.Array, context: Context) -> tuple[nnx.State, nnx.State]:
        _, params, state = nnx.split(self, nnx.Param, State)
        return params, state

    def parameters(
        self, params: nnx.State, x: jax.Array, context: Context
    ) -> list[Parameter]:
        made = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Param))
        return [declaration_of(param) for param in made]

    def states(
        self, state: nnx.State, x: jax.Array, context: Context
    ) -> list[StateDeclaration]:
        cells = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, State))
        return [declaration_of(cell) for cell in cells]

    def run(
        self, params: nnx.State, state: nnx.State, x: jax.Array, context: Context
    ) -> tuple[jax.Array, nnx.State]:
        layers = nnx.merge(nnx.graphdef(self), params, state)
        for i, layer in enumerate(layers):
            x = layer(x, context.in_cycle(i, len(layers)))
        return x, nnx.state(layers, State)

    def keep(self, state: nnx.State) -> None:
        nnx.update(self, state)


class NnxMaker(Maker):
    """Makes parts as attributes of a module."""

    def __init__(self, module: Module, rngs: nnx.Rngs):
        self._module = module
        self._rngs = rngs

    def _keep(self, name: str, part: Any) -> None:
        setattr(self._module, name, part)

    def child(self, name: str, factory: Factory | None, **fields: Any) -> None:
        self._keep(name, factory and factory(**fields, rngs=self._rngs))

    def children(self, name: str, factories: Sequence[Factory], **fields: Any) -> None:
        made = [factory(**fields, rngs=self._rngs) for factory in factories]
        self._keep(name, nnx.List(made))

    def stacked(
        self,
        name: str,
        factories: Sequence[Factory],
        repeats: int,
        dim: str,
        **fields: Any,
    ) -> None:
        made = [stacked(f, repeats, dim, self._rngs, **fields) for f in factories]
        self._keep(name, NnxStackedLayers(made, ends_in(factories)))

    def parameter(self, name: str, declaration: Parameter | None) -> None:
        self._keep(name, declaration and param(declaration, self._rngs))

    def state(self, name: str, declaration: StateDeclaration | None) -> None:
        self._keep(name, declaration and state(declaration))


def param(declaration: Parameter, rngs: nnx.Rngs) -> Param:
    """Returns a fresh parameter that carries its declaration."""
    return Param(declaration.draw(rngs.params()), declaration=declaration)


def state(declaration: StateDeclaration) -> State:
    """Returns state that carries its declaration."""
    return State(declaration.first(), declaration=declaration)


def declaration_of(variable: nnx.Variable) -> Any:
    """Returns what `param` or `state` was given."""
    return variable.get_metadata()["declaration"]


def stacked(
    factory: Callable[..., Module], repeats: int, dim: str, rngs: nnx.Rngs, **kwargs
):
    """Returns one module whose arrays hold `repeats` layers along the first dim."""

    def make(key: jax.Array) -> Module:
        return factory(**kwargs, rngs=nnx.Rngs(params=key))

    keys = jax.random.split(rngs.params(), repeats)
    graphdef = nnx.graphdef(nnx.eval_shape(make, keys[0]))
    layers = nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(key)))(keys))
    for _, variable in nnx.to_flat_state(nnx.state(layers)):
        declared = declaration_of(variable).stacked(repeats, dim)
        variable.set_metadata(declaration=declared)
    return layers


def flat_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Returns a variable's path with list items written as Linen names them.

    `("stacks", 0, "norm")` becomes `("stacks_0", "norm")`.
    """
    names: list[str] = []
    for part in path:
        if isinstance(part, int):
            names[-1] = f"{names[-1]}_{part}"
        else:
            names.append(part)
    return tuple(names)
