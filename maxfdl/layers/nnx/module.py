"""What NNX layers are made of: parameters and state that know themselves."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from maxfdl.layers.parameter import Parameter


class Module(nnx.Module):
    """Base of the layers of this family."""


class State(nnx.Variable):
    """A value that a layer changes as it runs and that no gradient reaches."""


def param(declaration: Parameter, rngs: nnx.Rngs) -> nnx.Param:
    """Returns a fresh parameter that carries its declaration."""
    return nnx.Param(declaration.draw(rngs.params()), declaration=declaration)


def declaration_of(variable: nnx.Variable) -> Parameter:
    """Returns what `param` was given."""
    return variable.get_metadata()["declaration"]


def stacked(factory: Callable[..., Module], repeats: int, *, rngs: nnx.Rngs, **kwargs):
    """Returns one module whose arrays hold `repeats` layers along a leading dim."""

    def make(key: jax.Array) -> Module:
        return factory(**kwargs, rngs=nnx.Rngs(params=key))

    keys = jax.random.split(rngs.params(), repeats)
    graphdef = nnx.graphdef(nnx.eval_shape(make, keys[0]))
    layers = nnx.merge(graphdef, jax.vmap(lambda key: nnx.state(make(key)))(keys))
    for _, variable in nnx.to_flat_state(nnx.state(layers, nnx.Param)):
        variable.set_metadata(declaration=declaration_of(variable).stacked(repeats))
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
