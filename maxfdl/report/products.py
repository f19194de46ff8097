"""In what the matrix products of a graph are computed."""

from typing import Any

import fiddle as fdl

from maxfdl import graph
from maxfdl.graph.select import iterate_paths, makes
from maxfdl.ops.product import Product


def products_of(config: fdl.Buildable) -> dict[str, list[str]]:
    """Returns, for each way to compute a product, the paths of layers that use it.

    A way is the type of activations, or a recipe with all its fields, and what the
    first and last layers of the decoder have in its place.
    """
    ways: dict[str, list[str]] = {}
    for path, node in iterate_paths(config.model):
        if makes(node, Product):
            way = _way(graph.build(node), config.model.dtype)
            ways.setdefault(way, []).append(path.rpartition(".")[0])
    return ways


def products_text(products: dict[str, list[str]]) -> str:
    """Returns `7 in Fp8Current(...), 1 in bfloat16 (head)`, few layers by name."""
    parts = []
    for way, layers in products.items():
        names = f" ({', '.join(layers)})" if len(layers) <= 2 else ""
        parts.append(f"{len(layers)} in {way}{names}")
    return ", ".join(parts)


def _way(op: Any, dtype: str) -> str:
    """Returns how an op multiplies activations of a type.

    An op that is not plain, and has no recipe, is its own.
    """
    way = _text(getattr(op, "recipe", None if op.is_plain else op), dtype)
    if op.ends is None:
        return way
    ends = [
        f"the {end} {count} layers" if count > 1 else f"the {end} layer"
        for end, count in (("first", op.ends.first), ("last", op.ends.last))
        if count
    ]
    return f"{way} but {' and '.join(ends)} in {_text(op.ends_recipe, dtype)}"


def _text(recipe: Any, dtype: str) -> str:
    return dtype if recipe is None else repr(recipe).replace("'", "")
