"""Matrix products in int8, and in formats whose scales are of few numbers."""

from typing import Any, Literal, TypeVar

import fiddle as fdl

from maxfdl.errors import MutationError
from maxfdl.graph import copy, nodes_of
from maxfdl.mutations.fields import chosen
from maxfdl.mutations.products import (
    is_matrix_product,
    recipe_of,
    selected,
    use_no_recipe,
    use_recipe,
)
from maxfdl.mutations.scope import MODEL, network_in
from maxfdl.ops.block_scaling import Exponents
from maxfdl.ops.int8 import Int8, Rounding
from maxfdl.ops.microscaling import Mxfp4, Mxfp8, Nvfp4
from maxfdl.ops.product import Ends
from maxfdl.ops.recipe import Recipe

C = TypeVar("C", bound=fdl.Buildable)
Format = Literal["int8", "mxfp8", "mxfp4", "nvfp4", "none"]

_RECIPES: dict[str, type[Recipe] | None] = {
    "int8": Int8,
    "mxfp8": Mxfp8,
    "mxfp4": Mxfp4,
    "nvfp4": Nvfp4,
    "none": None,
}


def quantize(
    cfg: C,
    *,
    format: Format = "int8",
    backward: bool | None = None,
    rounding: Rounding | None = None,
    exponents: Exponents | None = None,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    first_layers: int = 0,
    last_layers: int = 0,
    under: str = MODEL,
) -> C:
    """Computes matrix products in int8 or in blocks of FP8 or FP4 with a scale each.

    Those of all projections, low-rank ones too, experts and modules of multi-token
    prediction. The embedding looks up rows, and routers compute in float32; the head
    stays as it is unless `only` names it. Parameters stay in their type: each product
    rounds what it multiplies, and gradients go straight through the rounding. The
    format `none` is the inverse: products in the type of activations again.

    Args:
      cfg: The graph.
      format: `int8` has a scale for each token and each output of a kernel, see
        `maxfdl.ops.int8`. `mxfp8` and `mxfp4` have one for 32 numbers, `nvfp4` one for
        16, see `maxfdl.ops.microscaling`.
      backward: Of `int8` and `mxfp8`: whether gradients are rounded, too. None is
        False: the products of the backward pass are in the type of activations.
      rounding: Of `int8`: how gradients are rounded; None is `nearest`.
      exponents: Of `mxfp8` and `mxfp4`: how scales are rounded; None is `up`.
      only: Which products; empty: all. Each is `attention`, `delta_net`, `experts`,
        `head`, `later_token`, `latent_attention` or `mlp`, or a path as `freeze` takes
        it, such as `**.attention.out`, from the network on.
      skip: Which of these stay as they are.
      first_layers, last_layers: In so many layers at either end of the decoder they
        stay as they are, too. Each layer of a cycle counts. A head and modules of
        multi-token prediction are at no end.
      under: Path of the network.

    Raises:
      MutationError: If nothing is selected, if `only` or `skip` names nothing, or if
        an argument belongs to another format.
    """
    ends = Ends(first_layers, last_layers)
    rounded = dict(backward=backward, rounding=rounding, exponents=exponents)
    recipe = _recipe(format, ends, **rounded)
    out = copy(cfg)
    network = network_in(out, under)
    if recipe is None and not only and not skip:
        nodes = nodes_of(network, is_matrix_product)  # those of heads, too
    else:
        nodes = selected(network, only, skip, "quantize")
    for node in nodes:
        if recipe is None:
            use_no_recipe(node)
        else:
            use_recipe(node, recipe, ends, "quantize")
    return out


def _recipe(format: str, ends: Ends, **arguments: Any) -> fdl.Config | None:
    """Returns the node of a format's recipe, None for `none`."""
    made = chosen(_RECIPES, format, "quantize format")
    if made is not None:
        return recipe_of(made, f"quantize format {format}", **arguments)
    given = [name for name, value in arguments.items() if value is not None]
    given += [f"{end}_layers" for end, count in vars(ends).items() if count]
    if given:
        raise MutationError(
            f"quantize format none leaves products as they are, without"
            f" {', '.join(given)}; leave that out, or name a format:"
            f" {', '.join(name for name in _RECIPES if name != format)}."
        )
    return None
