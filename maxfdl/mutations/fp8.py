"""FP8 matrix products."""

from typing import Literal, TypeVar

import fiddle as fdl

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
from maxfdl.ops.fp8 import Format
from maxfdl.ops.fp8_block import Fp8Block
from maxfdl.ops.fp8_recipes import Fp8Current, Fp8Delayed, Granularity
from maxfdl.ops.product import Ends

C = TypeVar("C", bound=fdl.Buildable)
RecipeName = Literal["current", "delayed", "block"]

_RECIPES = {
    "current": Fp8Current,
    "delayed": Fp8Delayed,
    "block": Fp8Block,
}


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
    first_layers: int = 0,
    last_layers: int = 0,
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
      backward: Format of gradients; None is the recipe's: `e5m2`, which has more room
        for what grows, of `delayed`, and `e4m3` of the others.
      fnuz: Whether the formats are those of AMD's MI300.
      granularity: Of `current`: a scale per `tensor` or per `channel`.
      history: Of `delayed`: steps that scales look back.
      margin: Of `delayed`: powers of two left free for greater numbers.
      size: Of `block`: numbers along the side of a block.
      only: Which products; empty: all. The projection of multi-token prediction goes
        with the attention that follows it. Each is `attention`, `delta_net`, `experts`,
        `head`, `later_token`, `latent_attention` or `mlp`, or a path as `freeze` takes
        it, such as `**.attention.out`, from the network on.
      skip: Which of these stay as they are.
      first_layers, last_layers: In so many layers at either end of the decoder they
        stay as they are, too. Each layer of a cycle counts. A head and modules of
        multi-token prediction are at no end.
      under: Path of the network.

    Raises:
      MutationError: If nothing is selected, if `only` or `skip` names nothing, or if
        an argument belongs to another recipe.
    """
    made = recipe_of(
        chosen(_RECIPES, recipe, "enable_fp8 recipe"),
        f"enable_fp8 recipe {recipe}",
        forward=forward,
        backward=backward,
        fnuz=fnuz,
        granularity=granularity,
        history=history,
        margin=margin,
        size=size,
    )
    ends = Ends(first_layers, last_layers)
    out = copy(cfg)
    for node in selected(network_in(out, under), only, skip, "enable_fp8"):
        use_recipe(node, made, ends, "enable_fp8")
    return out


def disable_fp8(cfg: C, *, under: str = MODEL) -> C:
    """Computes all matrix products in the type of activations again.

    Also those that are in another format than FP8. State that products kept is left
    out of the model. `enable_fp8` is the inverse.

    Raises:
      MutationError: If there is no matrix product.
    """
    out = copy(cfg)
    for node in nodes_of(network_in(out, under), is_matrix_product):
        use_no_recipe(node)
    return out
