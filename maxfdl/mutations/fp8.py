"""FP8 matrix products."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError, did_you_mean
from maxfdl.graph import copy, nodes_of, swap
from maxfdl.graph.select import iterate_paths
from maxfdl.layers import linen, nnx
from maxfdl.layers.frozen import matches, tree_path
from maxfdl.mutations.fields import chosen
from maxfdl.mutations.scope import MODEL, network_in
from maxfdl.ops.dot import Dot, MatrixProduct
from maxfdl.ops.fp8 import Format
from maxfdl.ops.fp8_block import Block
from maxfdl.ops.fp8_dot import Fp8Dot, Fp8GroupedDot
from maxfdl.ops.fp8_recipes import Current, Delayed, Granularity, Recipe
from maxfdl.ops.grouped_dot import GroupedDot, GroupedProduct

C = TypeVar("C", bound=fdl.Buildable)
RecipeName = Literal["current", "delayed", "block"]

_RECIPES: dict[str, type[Recipe]] = {
    "current": Current,
    "delayed": Delayed,
    "block": Block,
}
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


def enable_fp8(
    cfg: C,
    *,
    recipe: RecipeName = "current",
    forward: Format | None = None,
    backward: Format | None = None,
    fnuz: bool | None = None,
    granularity: Granularity | None = None,
    history: int | None = None,
    margin: int | None = None,
    size: int | None = None,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    under: str = MODEL,
) -> C:
    """Computes matrix products in FP8, forward and backward, with sums in float32.

    Those of all projections, low-rank ones too, experts and modules of multi-token
    prediction. The embedding looks up rows, and routers compute in float32; the head
    stays as it is unless `only` names it. Halves the bytes that a product keeps of its
    operands. By its data sheets, hardware with FP8 units multiplies at up to twice the
    rate of bfloat16. `disable_fp8` is the inverse.

    Args:
      cfg: The graph.
      recipe: Where scales come from: `current` takes those of the tensors at hand,
        `delayed` those of the steps before, see `maxfdl.ops.fp8_recipes`; `block` those
        of blocks of 128 numbers, as DeepSeek-V3 trains, see `maxfdl.ops.fp8_block`.
      forward: Format of activations and kernels; None is the recipe's, `e4m3`.
      backward: Format of gradients; None is the recipe's, `e5m2`, but `e4m3` for
        `block`.
      fnuz: Whether the formats are those of AMD's MI300.
      granularity: Of `current`: a scale per `tensor` or per `channel`.
      history: Of `delayed`: steps that scales look back.
      margin: Of `delayed`: powers of two left free for greater numbers.
      size: Of `block`: numbers along the side of a block.
      only: Which products; empty: all. Each is `attention`, `delta_net`, `experts`,
        `head`, `later_token`, `latent_attention` or `mlp`, or a path as `freeze` takes
        it, such as `**.attention.out`, from the network on.
      skip: Which of these stay as they are.
      under: Path of the network.

    Raises:
      MutationError: If nothing is selected, if `only` or `skip` names nothing, or if
        an argument belongs to another recipe.
    """
    made = _recipe(
        recipe,
        dict(
            forward=forward,
            backward=backward,
            fnuz=fnuz,
            granularity=granularity,
            history=history,
            margin=margin,
            size=size,
        ),
    )
    out = copy(cfg)
    for node in _selected(network_in(out, under), tuple(only), tuple(skip)):
        grouped = _is_grouped(node)
        swap(node, Fp8GroupedDot if grouped else Fp8Dot, recipe=copy(made))
    return out


def disable_fp8(cfg: C, *, under: str = MODEL) -> C:
    """Computes all matrix products in the type of activations again.

    State that FP8 kept is left out of the model. `enable_fp8` is the inverse.

    Raises:
      MutationError: If there is no matrix product.
    """
    out = copy(cfg)
    for node in nodes_of(network_in(out, under), is_matrix_product):
        if fdl.get_callable(node) in (Fp8Dot, Fp8GroupedDot):
            swap(node, GroupedDot if _is_grouped(node) else Dot)
    return out


def is_matrix_product(node: fdl.Buildable) -> bool:
    made = fdl.get_callable(node)
    return isinstance(made, type) and issubclass(made, (MatrixProduct, GroupedProduct))


def _is_grouped(node: fdl.Buildable) -> bool:
    return issubclass(fdl.get_callable(node), GroupedProduct)  # type: ignore[arg-type]


def _recipe(name: str, arguments: dict[str, Any]) -> fdl.Config:
    """Returns the node of a recipe, with the arguments that are given."""
    given = {key: value for key, value in arguments.items() if value is not None}
    made = chosen(_RECIPES, name, "enable_fp8 recipe")
    strange = given.keys() - made.__dataclass_fields__.keys()
    if strange:
        raise MutationError(
            f"enable_fp8 {', '.join(sorted(strange))} belongs to another recipe than"
            f" {name}, which has {', '.join(made.__dataclass_fields__)}."
        )
    return fdl.Config(made, **given)


def _selected(
    network: fdl.Buildable, only: Sequence[str], skip: Sequence[str]
) -> list[fdl.Buildable]:
    """Returns the nodes of products that `only` names and `skip` does not.

    Raises:
      MutationError: If there are none, a name matches none, or one node makes products
        of which some are selected and others are not.
    """
    nodes_of(network, is_matrix_product)  # says what there is if there is none
    nodes = list(iterate_paths(network))
    products = {path: node for path, node in nodes if is_matrix_product(node)}
    roles = {path: _roles(path, nodes) for path in products}
    for name in (*only, *skip):
        _check_name(name, roles)

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
                f"enable_fp8 selects {_holder(wanted[0])} without all of"
                f" {', '.join(map(_holder, paths))}, which are one node of the graph;"
                " name all of them or none."
            )
        if wanted:
            found[id(node)] = node
    if not found:
        raise MutationError(
            "enable_fp8 is left no product: skip takes all that only selects."
        )
    return list(found.values())


def _check_name(name: str, roles: dict[str, set[str]]) -> None:
    """Refuses a name that is neither a role nor a path of the products in `roles`."""
    if any(_is_named(name, path, of_path) for path, of_path in roles.items()):
        return
    there = sorted({role for of_path in roles.values() for role in of_path})
    hint = did_you_mean(name, [*there, *map(_holder, roles)])
    raise MutationError(
        f"enable_fp8 [{name}] must match the path of a product, or be one of"
        f" {', '.join(there)}, of which this network has products.{hint}"
    )


def _roles(path: str, nodes: list[tuple[str, fdl.Buildable]]) -> set[str]:
    """Returns the words for the layers that hold the product at `path`."""
    above = [node for at, node in nodes if path.startswith((f"{at}.", f"{at}["))]
    return {
        role
        for role, names in _ROLES.items()
        for node in above
        if fdl.get_callable(node) in _classes(names)
    }


def _classes(names: Sequence[str]) -> list[Any]:
    return [getattr(family, name) for family in (nnx, linen) for name in names]


def _is_named(name: str, path: str, roles: set[str]) -> bool:
    if name in _ROLES:
        return name in roles
    return matches(name, tree_path(_holder(path)))


def _holder(path: str) -> str:
    """Returns the path of the layer whose product lies at `path`."""
    return path.rpartition(".")[0]
