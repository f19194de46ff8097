"""What a layer is, for both families: fields, parts and forward pass, written once.

`layers/attention.py` and its neighbours hold the layers. `layers/nnx` and
`layers/linen` make NNX and Linen modules of them: each has, in `module.py`, a `Maker`
that makes the parts of a layer, and a base class that calls its methods with them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, dataclass_transform

import jax
from jax.typing import DTypeLike

from maxfdl.layers.context import Context
from maxfdl.layers.parameter import Parameter
from maxfdl.ops.product import Ends, Product
from maxfdl.ops.state import StateDeclaration
from maxfdl.sharding.memory import on_device

Factory = Callable[..., Any]
P = ParamSpec("P")
R = TypeVar("R")


class Weight:
    """A parameter as a layer sees it: its value, which knows its declaration."""

    @property
    def stored(self) -> jax.Array:
        """The value as it is stored: in its own type, cut as the rules say."""
        raise NotImplementedError

    @property
    def declared(self) -> Parameter:
        """The declaration that the parameter was made with."""
        raise NotImplementedError

    def ready(self, context: Context, dtype: DTypeLike | None = None) -> jax.Array:
        """Returns the value ready for use: cast to `dtype`, then gathered.

        Without a `dtype` it keeps the type that it is stored in. If it is trained for a
        storage of few bits, it is what products see of it, which takes the whole value.
        """
        dtype = dtype or self.stored.dtype
        if self.declared.simulates is None:
            return context.weight(self.stored, self.declared.axes, dtype)
        whole = context.weight(self.stored, self.declared.axes, self.stored.dtype)
        return self.declared.simulated(whole).astype(dtype)

    def cut(self, dtype: DTypeLike) -> jax.Array:
        """Returns the value cast to `dtype`, for what gathers it in another type."""
        return on_device(self.stored).astype(dtype)


class Cell:
    """A value that a layer changes as it runs, and that no gradient reaches."""

    @property
    def declared(self) -> StateDeclaration:
        """The declaration that the state was made with."""
        raise NotImplementedError

    def read(self) -> jax.Array:
        raise NotImplementedError

    def write(self, value: jax.Array) -> None:
        """Replaces the value, for whoever reads after, in this call or the next.

        Raises:
          ValueError: If the declaration says that layers only read it.
        """
        if self.declared.merge == "same":
            raise ValueError(
                "A layer writes state that is declared with merge 'same', which layers"
                " only read; declare how the values of microbatches and replicas become"
                " one: 'max', 'sum', 'mean' or 'last'."
            )
        self._replace(jax.lax.stop_gradient(value).astype(self.declared.dtype))

    def _replace(self, value: jax.Array) -> None:
        raise NotImplementedError


class StackedLayers:
    """Layers that run one after the other, with the arrays of several repeats.

    Attributes:
      ends: The ends of a decoder at which their products change.
    """

    ends: tuple[Ends, ...]

    def arrays(self, x: jax.Array, context: Context) -> tuple[Any, Any]:
        """Returns parameters and state of all repeats, before they run on `x`."""
        raise NotImplementedError

    def parameters(
        self, params: Any, x: jax.Array, context: Context
    ) -> Sequence[Parameter]:
        """Returns the declaration of each leaf of `params`, in order."""
        raise NotImplementedError

    def states(
        self, state: Any, x: jax.Array, context: Context
    ) -> Sequence[StateDeclaration]:
        """Returns the declaration of each leaf of `state`, in order."""
        raise NotImplementedError

    def run(
        self, params: Any, state: Any, x: jax.Array, context: Context
    ) -> tuple[jax.Array, Any]:
        """Runs each layer once, with the arrays of one repeat; returns new state."""
        raise NotImplementedError

    def keep(self, state: Any) -> None:
        """Replaces the state of all repeats."""
        raise NotImplementedError


class Maker:
    """Makes the parts of one layer. A part that is given as None stays None."""

    def child(self, name: str, factory: Factory | None, **fields: Any) -> None:
        """Makes the layer `name`, called with the fields that its parent supplies."""
        raise NotImplementedError

    def children(self, name: str, factories: Sequence[Factory], **fields: Any) -> None:
        """Makes a list of layers, whose names are `name_0`, `name_1` and so on."""
        raise NotImplementedError

    def stacked(
        self,
        name: str,
        factories: Sequence[Factory],
        repeats: int,
        dim: str,
        **fields: Any,
    ) -> None:
        """Makes `StackedLayers`, named as `children` are.

        Their arrays have a leading dim, of the logical name `dim`, of `repeats` layers.
        """
        raise NotImplementedError

    def parameter(self, name: str, declaration: Parameter | None) -> None:
        """Makes a `Weight`."""
        raise NotImplementedError

    def state(self, name: str, declaration: StateDeclaration | None) -> None:
        """Makes a `Cell`."""
        raise NotImplementedError


class Module:
    """Base of all modules of both families, those that are no `Layer` included."""

    def call_with_parts(self, method: Callable[..., R], *args: Any) -> R:
        """Returns `method(self, parts, *args)`. Each family has its own way."""
        raise NotImplementedError


@dataclass_transform(kw_only_default=True, eq_default=False)
class Layer(Module):
    """Base of the layers that are written once for both families.

    A subclass annotates its fields, as a dataclass does. `make` says what it is made
    of, and a method that is marked `with_parts` gets these parts, as attributes of one
    object, before its own arguments. The norms in `norm.py` are short examples.
    """

    def __init_subclass__(cls, **kwargs: Any):
        if cls.__doc__ is None:  # Python does not inherit it
            cls.__doc__ = next(base.__doc__ for base in cls.__mro__ if base.__doc__)
        super().__init_subclass__(**kwargs)
        if "__init__" not in vars(cls):  # a family has constructors of its own
            dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def make(self, maker: Maker) -> None:
        """Makes the children, parameters and state of the layer."""


def leaf_ops(factory: Any) -> Iterator[Any]:
    """Yields what is no factory of layers among the fields of one, or of several in a
    list, at any depth."""
    if isinstance(factory, functools.partial):
        for field in (*factory.args, *factory.keywords.values()):
            yield from leaf_ops(field)
    elif isinstance(factory, list | tuple):
        for item in factory:
            yield from leaf_ops(item)
    else:
        yield factory


def ends_in(factories: Sequence[Factory]) -> tuple[Ends, ...]:
    """Returns the ends of a decoder at which products of these layers change."""
    products = (op for op in leaf_ops(list(factories)) if isinstance(op, Product))
    return tuple(dict.fromkeys(op.ends for op in products if op.ends is not None))


def with_parts(
    method: Callable[Concatenate[Any, Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """Turns `f(self, parts, ...)` into a method that is called without the parts."""

    @functools.wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.call_with_parts(functools.partial(method, **kwargs), *args)

    return call
