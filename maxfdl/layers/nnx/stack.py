"""A cycle of layers, repeated."""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import nnx

from maxfdl.layers.checks import check_stack
from maxfdl.layers.context import Context
from maxfdl.layers.execution import Execution, Remat, run_stack
from maxfdl.layers.nnx.module import Module, State, stacked
from maxfdl.markers import FromParent, Operational


class Stack(Module):
    """`repeats` times the cycle `layers`, with weights of their own each time.

    The arrays of all repeats lie in one, along a leading dim. See `execution.py` for
    how the repeats run.

    Args:
      layers: The layers of one cycle, in order.
      repeats: How often the cycle comes.
      execution: As a loop (`Scan`) or one after the other (`Unroll`).
      remat: What the backward pass keeps.
    """

    named_tensors = ("layer_in",)
    check_config = staticmethod(check_stack)

    def __init__(
        self,
        *,
        layers: Sequence[Callable[..., Module]],
        repeats: int,
        execution: Annotated[Execution, Operational],
        remat: Annotated[Remat, Operational] = "none",
        features: Annotated[int, FromParent],
        rngs: nnx.Rngs,
    ):
        self.execution = execution
        self.remat: Remat = remat
        self.layers = nnx.List(
            [stacked(layer, repeats, features=features, rngs=rngs) for layer in layers]
        )

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        graphdef, params, state = nnx.split(self.layers, nnx.Param, State)

        def run_cycle(params, state, x, context):
            layers = nnx.merge(graphdef, params, state)
            for i, layer in enumerate(layers):
                x = layer(x, context.at(f"layers_{i}"))
            return x, nnx.state(layers, State)

        x, state = run_stack(
            run_cycle,
            params,
            state,
            x,
            context,
            execution=self.execution,
            remat=self.remat,
        )
        nnx.update(self.layers, state)
        return x
