"""Which matrix products of a network a mutation changes."""

from collections.abc import Sequence
from typing import Any

import fiddle as fdl

from maxfdl.errors import MutationError, did_you_mean
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.graph.select import iterate_paths
from maxfdl.graph.signatures import fields
from maxfdl.layers import linen, nnx
from maxfdl.layers.frozen import matches, tree_path
from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct
from maxfdl.ops.quantized_dot import QuantizedDot, QuantizedGroupedDot
from maxfdl.ops.recipe import Recipe

_ROLES = {
    "attention": ("Attention", "LatentAttention"),
    "delta_net": ("GatedDeltaNet",),
    "experts": ("Experts",),
    "head": ("Head", "TiedHead"),
    "later_token": ("LaterToken",),
    "latent_attention": ("LatentAttention",),
    "mlp": ("GatedMlp", "Mlp"),
}
"""Words that stand for the products inside layers of these classes."""


def is_matrix_product(node: fdl.Buildable) -> bool:
    made = fdl.get_callable(node)
    return isinstance(made, type) and issubclass(made, (MatrixProduct, GroupedProduct))


def recipe_of(made: type[Recipe], what: str, **arguments: Any) -> fdl.Config[Recipe]:
    """Returns the node of a recipe with those arguments that are not None.

    Args:
      made: The recipe.
      what: How its user calls it, for errors.
      **arguments: Those of all recipes that the user might have named.

    Raises:
      MutationError: If one is given that this recipe does not have.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    recipe = fdl.Config(made)
    there = fields(recipe)
    strange = sorted(given.keys() - set(there))
    if strange:
        raise MutationError(
            f"{what} has no {', '.join(strange)}; it has"
            f" {', '.join(there) or 'no such arguments'}."
        )
    return fdl.copy_with(recipe, **given)


def use_recipe(node: fdl.Buildable, recipe: fdl.Config) -> None:
    """Makes a product one that follows a recipe, in place."""
    made = QuantizedGroupedDot if _is_grouped(node) else QuantizedDot
    swap(node, made, recipe=copy(recipe))


def use_no_recipe(node: fdl.Buildable) -> None:
    """Makes a product that follows a recipe the plain one, in place."""
    if fdl.get_callable(node) in (QuantizedDot, QuantizedGroupedDot):
        swap(node, GroupedDot if _is_grouped(node) else Dot)


def selected(
    network: fdl.Buildable, only: Sequence[str], skip: Sequence[str], who: str
) -> list[fdl.Buildable]:
    """Returns the nodes of products that `only` names and `skip` does not.

    Args:
      network: The network that holds them.
      only: Roles and paths of products; empty: all but the heads'.
      skip: Roles and paths of those that are left out.
      who: The mutation that asks, for errors.

    Raises:
      MutationError: If there are none, a name matches none, or one node makes products
        of which some are selected and others are not.
    """
    nodes_of(network, is_matrix_product)  # says what there is if there is none
    nodes = list(iterate_paths(network))
    products = {path: node for path, node in nodes if is_matrix_product(node)}
    roles = {path: _roles(path, nodes) for path in products}
    for name in (*only, *skip):
        _check_name(name, roles, who)

    def is_named(path: str, names: Sequence[str]) -> bool:
        return any(_is_named(name, path, roles[path]) for name in names)

    def is_selected(path: str) -> bool:
        wanted = is_named(path, only) if only else True
        if "head" in roles[path] and "head" not in only:
            return False
        return wanted and not is_named(path, skip)

    found = {}
    for node in products.values():
        paths = [path for path, each in products.items() if each is node]
        wanted = [path for path in paths if is_selected(path)]
        if wanted and wanted != paths:
            raise MutationError(
                f"{who} selects {_holder(wanted[0])} without all of"
                f" {', '.join(map(_holder, paths))}, which are one node of the graph;"
                " name all of them or none."
            )
        if wanted:
            found[id(node)] = node
    if not found:
        raise MutationError(
            f"{who} is left no product: skip takes all that only selects."
        )
    return list(found.values())


def _check_name(name: str, roles: dict[str, set[str]], who: str) -> None:
    """Refuses a name that is neither a role nor a path of the products in `roles`."""
    if any(_is_named(name, path, of_path) for path, of_path in roles.items()):
        return
    there = sorted({role for of_path in roles.values() for role in of_path})
    hint = did_you_mean(name, [*there, *map(_holder, roles)])
    raise MutationError(
        f"{who} [{name}] must match the path of a product, or be one of"
        f" {', '.join(there)}, of which this network has products.{hint}"
    )


def _roles(path: str, nodes: list[tuple[str, fdl.Buildable]]) -> set[str]:
    """Returns the words for the layers that hold the product at `path`.

    The projection of multi-token prediction is a copy of the first one of its layer,
    and goes with that: so it is the same whichever mutation comes first.
    """
    above = [node for at, node in nodes if path.startswith((f"{at}.", f"{at}["))]
    roles = {
        role
        for role, names in _ROLES.items()
        for node in above
        if fdl.get_callable(node) in _classes(names)
    }
    module, _, field = _holder(path).rpartition(".")
    if "later_token" in roles and field == "projection":
        layer = f"{module}.stack."
        copied = next(p for p, node in nodes if p.startswith(layer) and _is_dense(node))
        roles |= _roles(copied, nodes)
    return roles


def _classes(names: Sequence[str]) -> list[Any]:
    return [getattr(family, name) for family in (nnx, linen) for name in names]


def _is_named(name: str, path: str, roles: set[str]) -> bool:
    if name in _ROLES:
        return name in roles
    return matches(name, tree_path(_holder(path)))


def _holder(path: str) -> str:
    """Returns the path of the layer whose product lies at `path`."""
    return path.rpartition(".")[0]


def _is_dense(node: fdl.Buildable) -> bool:
    return is_matrix_product(node) and not _is_grouped(node)


def _is_grouped(node: fdl.Buildable) -> bool:
    return issubclass(fdl.get_callable(node), GroupedProduct)  # type: ignore[arg-type]
