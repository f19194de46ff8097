"""In what the matrix products of a graph are computed."""

import fiddle as fdl

from maxfdl import graph
from maxfdl.graph.select import iterate_paths
from maxfdl.ops.dot import MatrixProduct
from maxfdl.ops.grouped_dot import GroupedProduct


def products_of(config: fdl.Buildable) -> dict[str, list[str]]:
    """Returns, for each way to compute a product, the paths of layers that use it.

    A way is the type of activations, or a recipe with all its fields.
    """
    ways: dict[str, list[str]] = {}
    for path, node in iterate_paths(config.model):
        made = fdl.get_callable(node)
        if isinstance(made, type) and issubclass(made, (MatrixProduct, GroupedProduct)):
            way = _recipe(node) or config.model.dtype
            ways.setdefault(way, []).append(path.rpartition(".")[0])
    return ways


def products_text(products: dict[str, list[str]]) -> str:
    """Returns `7 in Fp8Current(...), 1 in bfloat16 (head)`, few layers by name."""
    parts = []
    for way, layers in products.items():
        names = f" ({', '.join(layers)})" if len(layers) <= 2 else ""
        parts.append(f"{len(layers)} in {way}{names}")
    return ", ".join(parts)


def _recipe(node: fdl.Buildable) -> str | None:
    """Returns the recipe of a product; that of another op than the plain is its own."""
    op = graph.build(node)
    recipe = getattr(op, "recipe", None if op.is_plain else op)
    return recipe and repr(recipe).replace("'", "")
