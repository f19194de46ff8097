"""The family of Flax layers: NNX or Linen."""

from typing import Any, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.graph.names import load_module
from maxfdl.layers.linen.module import Module as LinenModule
from maxfdl.layers.nnx.module import Module as NnxModule
from maxfdl.model import LinenModel, Model, NnxModel
from maxfdl.mutations.scope import MODEL, backend_of, network_in

C = TypeVar("C", bound=fdl.Buildable)


def to_linen(cfg: C, *, under: str = MODEL) -> C:
    """Builds the network of Flax Linen layers.

    Same parameters, same seed, same numbers to the last bit; checkpoints fit both.
    `to_nnx` is the inverse.

    Raises:
      MutationError: If there is no layer, or one that has no twin.
    """
    return _to_family(cfg, "linen", LinenModel, under)


def to_nnx(cfg: C, *, under: str = MODEL) -> C:
    """Builds the network of Flax NNX layers.

    Same parameters, same seed, same numbers to the last bit; checkpoints fit both.
    `to_linen` is the inverse.

    Raises:
      MutationError: If there is no layer, or one that has no twin.
    """
    return _to_family(cfg, "nnx", NnxModel, under)


def _to_family(cfg: C, family: str, backend: type[Model], under: str) -> C:
    out = copy(cfg)
    _swap_layers(network_in(out, under), family)
    for model in nodes_of(backend_of(out, under), Model):
        swap(model, backend)
    return out


def with_layers_of(network: C, family: str) -> C:
    """Returns a copy of a network with layers of a family.

    Raises:
      MutationError: If there is no layer, or one that has no twin.
    """
    out = copy(network)
    _swap_layers(out, family)
    return out


def _swap_layers(network: fdl.Buildable, family: str) -> None:
    for layer in nodes_of(network, is_layer):
        swap(layer, _twin(fdl.get_callable(layer), family))


def is_layer(node: fdl.Buildable) -> bool:
    made = fdl.get_callable(node)
    return isinstance(made, type) and issubclass(made, (NnxModule, LinenModule))


def _twin(layer: Any, family: str) -> type:
    """Returns the class of the same name in the file of the same name."""
    package, _, file = layer.__module__.rpartition(".")
    twin_package = f"{package.rpartition('.')[0]}.{family}"
    try:
        module = load_module(f"{twin_package}.{file}")
        return getattr(module, layer.__name__)
    except (ModuleNotFoundError, AttributeError):
        raise MutationError(
            f"{layer.__module__}.{layer.__name__} has no twin in {twin_package}.{file};"
            " write one with the same fields and children."
        ) from None
