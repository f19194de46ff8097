"""A cycle of layers, repeated."""

from collections.abc import Callable, Sequence
from typing import Annotated

import jax
from flax import linen as nn

from maxfdl.layers.checks import check_stack
from maxfdl.layers.context import Context
from maxfdl.layers.execution import Execution, Remat, run_stack
from maxfdl.layers.linen.module import Module, put_if_any, stacked_variable
from maxfdl.markers import FromParent, Operational


class Stack(Module, kw_only=True):
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

    layers: Sequence[Callable[..., Module]]
    repeats: int
    execution: Annotated[Execution, Operational]
    remat: Annotated[Remat, Operational] = "none"
    features: Annotated[int, FromParent]

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        names = [f"layers_{i}" for i in range(len(self.layers))]
        layers = [layer(features=self.features, parent=None) for layer in self.layers]

        def variables(collection):
            return {
                name: stacked_variable(
                    self,
                    collection,
                    name,
                    self.repeats,
                    lambda key, layer=layer, name=name: layer.init(
                        key, x, context.for_layer(0).at(name)
                    ),
                )
                for name, layer in zip(names, layers, strict=True)
            }

        def run_cycle(params, state, x, context):
            new_state = {}
            for name, layer in zip(names, layers, strict=True):
                x, updates = layer.apply(
                    {"params": params[name], "state": state[name]},
                    x,
                    context.at(name),
                    mutable=["state"],
                )
                new_state[name] = updates.get("state", {})
            return x, new_state

        x, state = run_stack(
            run_cycle,
            variables("params"),
            variables("state"),
            x,
            context,
            execution=self.execution,
            remat=self.remat,
        )
        for name in names:
            put_if_any(self, "state", name, state[name])
        return x
