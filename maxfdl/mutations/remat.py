"""Rematerialisation: what is kept for the backward pass, and where."""

from typing import TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, iterate, nodes_of
from maxfdl.layers.execution import Name, Policy, SaveNamed
from maxfdl.mutations.roles import is_stack
from maxfdl.mutations.scope import MODEL, network_in

C = TypeVar("C", bound=fdl.Buildable)


def remat(
    cfg: C,
    *,
    policy: Policy = "full",
    save: tuple[Name, ...] = (),
    under: str = MODEL,
) -> C:
    """Recomputes activations in the backward pass, except those that `policy` keeps.

    With `full`, which keeps nothing else, `save` names tensors to keep.
    Same mathematics; saves memory and costs time. `remat(policy=none)` is the inverse.
    See `maxfdl.layers.execution` for the policies and the names.

    Raises:
      MutationError: If there is no stack, no layer of a stack gives a tensor that is
        named, or `save` comes with another policy.
    """
    if save and policy != "full":
        raise MutationError(
            f"remat policy ({policy}) must be full where save is given; leave it out to"
            f" save {', '.join(save)}."
        )
    out = copy(cfg)
    network = network_in(out, under)
    _check_given(network, save)
    for stack in nodes_of(network, is_stack):
        stack.remat = fdl.Config(SaveNamed, save=save) if save else policy
    return out


def offload_activations(
    cfg: C,
    *,
    names: tuple[Name, ...] = ("layer_in",),
    save: tuple[Name, ...] = (),
    under: str = MODEL,
) -> C:
    """Keeps the activations `names` in host memory until the backward pass.

    The tensors `save` stay on the device, and the rest is computed again. Same
    mathematics; saves device memory and costs transfers to and from the host.
    `remat(policy=none)` is the inverse.
    See `maxfdl.layers.execution.SaveNamed` for the names.

    Raises:
      MutationError: If there is no stack, or no layer of a stack gives a tensor that
        is named.
    """
    out = copy(cfg)
    network = network_in(out, under)
    _check_given(network, (*names, *save))
    for stack in nodes_of(network, is_stack):
        stack.remat = fdl.Config(SaveNamed, save=save, offload=names)
    return out


def _check_given(network: fdl.Buildable, names: tuple[Name, ...]) -> None:
    """Raises unless a layer in a stack of the network gives each of `names`."""
    made = [
        fdl.get_callable(node)
        for stack in nodes_of(network, is_stack)
        for _, node in iterate(stack)
    ]
    given = {name for each in made for name in getattr(each, "named_tensors", ())}
    missing = [name for name in names if name not in given]
    if missing:
        raise MutationError(
            f"No layer in this graph's stacks gives {', '.join(missing)}; they give"
            f" {', '.join(sorted(given))}."
        )
