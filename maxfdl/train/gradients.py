"""How the gradients of a batch come about: at once, or microbatch by microbatch.

An objective is `objective(params, layer_state, batch) -> loss, parts`, with parts
the sums of its terms, the new state of the layers, and their sinks. Its terms are
divided by weights of the whole batch, so that gradients of parts add up and are never
divided afterwards.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.layers.sinks import merged
from maxfdl.ops.state import States
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding


class Parts(NamedTuple):
    """What a forward pass gives besides the loss."""

    sums: dict[str, jax.Array]
    layer_state: Any
    sinks: dict[str, Any]


Objective = Callable[..., tuple[jax.Array, Parts]]


def _gradient(objective: Objective, states: States) -> Objective:
    """Returns the function to the gradients, in the memory of the device, and parts.

    The state in the parts is that which the forward and the backward pass leave.
    """

    def of_values(params, values, layer_state, rows):
        return objective(params, states.with_backward(layer_state, values), rows)

    def gradient(params, layer_state, rows):
        values = states.of_backward(layer_state)
        (grads, left), parts = jax.grad(of_values, (0, 1), has_aux=True)(
            params, values, layer_state, rows
        )
        layer_state = states.with_backward(parts.layer_state, left)
        return on_device(grads), parts._replace(layer_state=layer_state)

    return gradient


@dataclasses.dataclass(frozen=True)
class WholeBatch:
    """The gradients of all rows at once."""

    steps: ClassVar[int] = 1

    def __call__(
        self,
        objective: Objective,
        params: Any,
        layer_state: Any,
        batch: Any,
        sharding: Sharding,
        states: States,
    ) -> tuple[Any, Parts]:
        """Returns the gradients, and the parts of the objective."""
        return _gradient(objective, states)(params, layer_state, batch)


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """The gradients of `steps` microbatches, one after the other, added in float32.

    Memory of activations is that of one microbatch. Row i of microbatch j is row
    `i * steps + j` of the batch, so that no row changes its device; what is random in
    it follows from its number in the batch. Each microbatch begins with the state that
    the layers had before the step; states become one by the rules of their
    declarations, sinks by their kind.
    """

    steps: int

    @staticmethod
    def check_config(node):
        if node.steps < 2:
            yield (
                f"Accumulate steps ({node.steps}) must be at least 2; WholeBatch takes"
                " all rows at once."
            )

    def __call__(
        self,
        objective: Objective,
        params: Any,
        layer_state: Any,
        batch: Any,
        sharding: Sharding,
        states: States,
    ) -> tuple[Any, Parts]:
        """Returns the gradients, and the parts of the objective."""
        gradient = _gradient(objective, states)

        def microbatches(x: jax.Array) -> jax.Array:
            x = x.reshape(x.shape[0] // self.steps, self.steps, *x.shape[1:])
            axes = (None, "batch", "sequence")[: x.ndim]
            return sharding.constrain(x.swapaxes(0, 1), axes)

        def body(total, rows):
            grads, parts = gradient(params, layer_state, rows)
            return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads), parts

        zeros = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)), params
        )
        total, (sums, layer_states, sinks) = jax.lax.scan(
            body, zeros, jax.tree.map(microbatches, dict(batch))
        )
        sums = {name: jnp.sum(values) for name, values in sums.items()}
        return total, Parts(
            sums, states.merged(layer_state, layer_states), merged(sinks)
        )
