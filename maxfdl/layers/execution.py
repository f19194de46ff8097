"""How a stack of equal layers runs: written once, in plain JAX, for both families.

A stack hands over `layer_fn(params, state, x, context) -> x, state`, which runs one
repeat, and trees of arrays whose leading dim counts repeats. Whether that is a loop
in the compiled program or not, and what the backward pass keeps, is decided here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_policies as policies

from maxfdl.layers.context import Context

LayerFn = Callable[[Any, Any, jax.Array, Context], tuple[jax.Array, Any]]
Remat = Literal["none", "full", "dots", "dots_no_batch", "attention_out"]

_POLICIES = {
    "full": policies.nothing_saveable,
    "dots": policies.dots_saveable,
    "dots_no_batch": policies.dots_with_no_batch_dims_saveable,
    "attention_out": policies.save_only_these_names("attention_out"),
}


def rematerialised(function: Callable, remat: Remat, prevent_cse: bool) -> Callable:
    """Returns `function` so that its backward pass keeps only what `remat` names.

    `none` keeps every intermediate. `full` keeps the input alone and computes the
    rest again, `dots` keeps the matrix products, `dots_no_batch` those without batch
    dims (projections, not attention scores), `attention_out` what attention mixed.
    `prevent_cse` keeps XLA from merging the second computation with the first, which
    it cannot do across the trips of a loop.
    """
    if remat == "none":
        return function
    return jax.checkpoint(function, policy=_POLICIES[remat], prevent_cse=prevent_cse)


class Execution:
    """How the repeats of a stack run: `execution(body, x, per_repeat)`."""

    in_loop: ClassVar[bool]
    """Whether the compiled program has one body for all repeats."""

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Scan(Execution):
    """One compiled body for all repeats: compile time does not grow with depth.

    Args:
      unroll: Repeats per trip of the loop.
    """

    in_loop = True
    unroll: int = 1

    @staticmethod
    def check_config(node):
        if node.unroll < 1:
            yield f"Scan unroll ({node.unroll}) must be at least 1."

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any):
        return lax.scan(body, x, per_repeat, unroll=self.unroll)


@dataclasses.dataclass(frozen=True)
class Unroll(Execution):
    """A copy of the body for every repeat: XLA may fuse across layers.

    The stacked arrays are cut by `lax.split`, whose transpose is one concatenation;
    indexing would add up a full-sized gradient per repeat.
    """

    in_loop = False

    def __call__(self, body: Callable, x: jax.Array, per_repeat: Any):
        leaves, treedef = jax.tree.flatten(per_repeat)
        repeats = leaves[0].shape[0]
        cut = [lax.split(leaf, [1] * repeats, axis=0) for leaf in leaves]
        outs = []
        for pieces in zip(*cut, strict=True):
            x, out = body(x, treedef.unflatten([lax.squeeze(p, [0]) for p in pieces]))
            outs.append(out)
        return x, jax.tree.map(lambda *values: jax.numpy.stack(values), *outs)


def run_stack(
    layer_fn: LayerFn,
    params: Any,
    state: Any,
    x: jax.Array,
    context: Context,
    *,
    execution: Execution,
    remat: Remat,
) -> tuple[jax.Array, Any]:
    """Runs all repeats and returns the output and the new stacked state.

    Side results and caches of the layers come out stacked too, under their path.
    """

    def one_repeat(x, params, state, cache, index):
        inner = context.for_layer(index, cache)
        x, state = layer_fn(params, state, x, inner)
        return x, (state, inner.sinks, inner.kept)

    one_repeat = rematerialised(one_repeat, remat, not execution.in_loop)
    repeats = jax.tree.leaves(params)[0].shape[0]

    def body(x, per_repeat):
        return one_repeat(x, *per_repeat)

    indexes = jax.numpy.arange(repeats, dtype="uint32")
    x, (state, sinks, kept) = execution(
        body, x, (params, state, context.stacked_cache(), indexes)
    )
    context.collect(sinks, kept)
    return x, state
