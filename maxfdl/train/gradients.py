"""Gradients of a batch: of all rows at once, or accumulated over microbatches.

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

from maxfdl.layers.sinks import SinkKey, merged
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding


class Parts(NamedTuple):
    """What a forward pass gives besides the loss."""

    sums: dict[str, jax.Array]
    layer_state: Any
    sinks: dict[SinkKey, Any]


Objective = Callable[..., tuple[jax.Array, Parts]]


def _gradient(objective: Objective) -> Callable[..., tuple[Any, Parts]]:
    """Returns the function that computes gradients, in device memory, and parts."""

    def gradient(*args):
        grads, parts = jax.grad(objective, has_aux=True)(*args)
        return on_device(grads), parts

    return gradient


@dataclasses.dataclass(frozen=True)
class WholeBatch:
    """Computes the gradients of all rows at once."""

    steps: ClassVar[int] = 1

    def __call__(
        self,
        objective: Objective,
        params: Any,
        layer_state: Any,
        batch: Any,
        sharding: Sharding,
    ) -> tuple[Any, Parts]:
        """Returns the gradients, and the parts of the objective."""
        return _gradient(objective)(params, layer_state, batch)


@dataclasses.dataclass(frozen=True)
class Accumulate:
    """Accumulates the gradients of `steps` microbatches, in float32.

    Activations take the memory of one microbatch. Row i of microbatch j is row
    `i * steps + j` of the batch, so that no row moves to another device. Dropout of a
    row depends on its number in the batch, so it does not depend on `steps`. The state
    of layers passes from one microbatch to the next; sinks are merged by their kind.
    """

    steps: int

    @staticmethod
    def check_config(node):
        if node.steps < 2:
            yield (
                f"Accumulate steps ({node.steps}) must be at least 2; WholeBatch takes"
                " all rows at once."
            )

    @staticmethod
    def check_in(node, root):
        smallest, name = root.batch_size, "batch_size"
        if root.ramp_up is not None:
            smallest, name = root.ramp_up.start, "ramp_up.start"
        if node.steps > 0 and smallest % node.steps:
            yield (
                f"Experiment {name} ({smallest}) must be a multiple of"
                f" trainer.gradients.steps ({node.steps})."
            )

    def __call__(
        self,
        objective: Objective,
        params: Any,
        layer_state: Any,
        batch: Any,
        sharding: Sharding,
    ) -> tuple[Any, Parts]:
        """Returns the gradients, and the parts of the objective."""
        gradient = _gradient(objective)

        def microbatches(x: jax.Array) -> jax.Array:
            x = x.reshape(x.shape[0] // self.steps, self.steps, *x.shape[1:])
            axes = (None, "batch", "sequence", *[None] * x.ndim)[: x.ndim]
            return sharding.constrain(x.swapaxes(0, 1), axes)

        def body(carry, rows):
            total, layer_state = carry
            grads, parts = gradient(params, layer_state, rows)
            total = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)
            return (total, parts.layer_state), (parts.sums, parts.sinks)

        zeros = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.promote_types(p.dtype, jnp.float32)), params
        )
        (total, layer_state), (sums, sinks) = jax.lax.scan(
            body, (zeros, layer_state), jax.tree.map(microbatches, dict(batch))
        )
        sums = {name: jnp.sum(values) for name, values in sums.items()}
        return total, Parts(sums, layer_state, merged(sinks))
