"""Which matrix products of a network a mutation changes."""

from collections.abc import Sequence
from typing import Any

import fiddle as fdl

from maxfdl.errors import MutationError, did_you_mean
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.graph.select import iterate_paths, makes
from maxfdl.graph.signatures import fields
from maxfdl.layers import linen, nnx
from maxfdl.layers.frozen import matches, tree_path
from maxfdl.mutations.fields import put
from maxfdl.ops.dot import Dot
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct
from maxfdl.ops.product import Ends, Product
from maxfdl.ops.quantized_dot import ByRecipe, QuantizedDot, QuantizedGroupedDot
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
    return makes(node, Product)


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


def use_recipe(node: fdl.Buildable, recipe: fdl.Config, ends: Ends, who: str) -> None:
    """Makes a product one that follows a recipe, in place.

    Args:
      node: The product.
      recipe: What it follows.
      ends: Layers of the decoder in which it stays what it is; none has counts of 0.
      who: The mutation that asks, for errors.

    Raises:
      MutationError: If the product stays another one in layers already, and these are
        not the same.
    """
    kept = _kept_at(node, ends, who)
    made = QuantizedGroupedDot if _is_grouped(node) else QuantizedDot
    swap(node, made, recipe=copy(recipe))
    has_ends = ends != Ends()
    put(node, "ends", fdl.Config(Ends, **vars(ends)) if has_ends else None)
    put(node, "ends_recipe", kept if has_ends else None)


def _kept_at(node: fdl.Buildable, ends: Ends, who: str) -> fdl.Config | None:
    """Returns the recipe that a product follows in these layers; None: it has none."""
    if not makes(node, ByRecipe):
        return None
    before = getattr(node, "ends", None)
    if before is None:
        return node.recipe
    if ends not in (Ends(), Ends(before.first, before.last)):
        raise MutationError(
            f"{who} first_layers ({ends.first}) and last_layers ({ends.last}) must be"
            f" those that products stay what they are in already ({before.first} and"
            f" {before.last}); undo that first, with disable_fp8."
        )
    return getattr(node, "ends_recipe", None)


def use_no_recipe(node: fdl.Buildable) -> None:
    """Makes a product that follows a recipe the plain one, in place."""
    if makes(node, ByRecipe):
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
    return makes(node, GroupedProduct)
