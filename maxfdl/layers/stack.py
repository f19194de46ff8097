"""A cycle of layers, repeated."""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax

from maxfdl.layers.checks import check_stack
from maxfdl.layers.context import Context
from maxfdl.layers.execution import Execution, Layers, Remat, run_stack
from maxfdl.layers.layer import Layer, Maker, Module, with_parts
from maxfdl.layers.segments import segments_of
from maxfdl.markers import FromParent, Operational


class Stack(Layer):
    """`repeats` times the cycle `layers`, with weights of their own each time.

    The arrays of all repeats lie in one, along a leading dim. See `execution.py` for
    how the repeats run.

    Args:
      layers: The layers of one cycle, in order.
      repeats: How often the cycle comes.
      execution: As a loop (`Scan`), one after the other (`Unroll`), or as stages of a
        `Pipeline`, which cuts rows into microbatches.
      remat: What the backward pass keeps.
    """

    named_tensors = ("layer_in",)
    check_config = staticmethod(check_stack)

    layers: Sequence[Callable[..., Module]]
    repeats: int
    execution: Annotated[Execution, Operational("rows_are_independent")]
    remat: Annotated[Remat, Operational] = "none"
    features: Annotated[int, FromParent]

    def make(self, maker: Maker):
        maker.stacked(
            "layers",
            self.layers,
            self.repeats,
            self.execution.dim(self.repeats),
            features=self.features,
        )

    @property
    def num_layers(self) -> int:
        """How many layers it runs."""
        return len(self.layers) * self.repeats

    @with_parts
    def __call__(self, parts, x: jax.Array, context: Context) -> jax.Array:
        cycle, ends = len(self.layers), parts.layers.ends
        segments = segments_of(self.repeats, cycle, context.depth, ends)
        params, state = parts.layers.arrays(x, context)
        states, caches = parts.layers.states(state, x, context), context.stacked_cache()
        layers = Layers(
            parts.layers.run,
            params,
            state,
            functools.partial(parts.layers.parameters, params, x, context),
            states,
            caches,
        )
        x, state = run_stack(layers, segments, x, context, self.execution, self.remat)
        parts.layers.keep(state)
        return x
