"""Gradients of a batch: of all rows at once, or accumulated over microbatches.

An objective is `objective(params, layer_state, batch) -> loss, parts`, with parts
the sums of its terms, the new state of the layers, and their sinks. Its terms are
divided by weights of the whole batch, so that gradients of parts add up and are never
divided afterwards.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.layers.sinks import SinkKey, merged
from maxfdl.ops.state import States
from maxfdl.sharding.memory import on_device
from maxfdl.sharding.sharding import Sharding


class Parts(NamedTuple):
    """What a forward pass gives besides the loss."""

    sums: dict[str, jax.Array]
    layer_state: Any
    sinks: dict[SinkKey, Any]


Objective = Callable[..., tuple[jax.Array, Parts]]


def _gradient(objective: Objective, states: States) -> Objective:
    """Returns the function that computes gradients, in device memory, and parts.

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


class Gradients(abc.ABC):
    """What computes the gradients of a batch.

    `steps` is the number of microbatches that it is cut in.
    """

    steps: int

    @abc.abstractmethod
    def __call__(
        self,
        objective: Objective,
        params: Any,
        layer_state: Any,
        batch: Any,
        sharding: Sharding,
        states: States,
    ) -> tuple[Any, Parts]:
        """Returns the gradients, and the parts of the objective.

        Args:
          objective: What is differentiated by `params`.
          params: The trained parameters.
          layer_state: State of the layers before the step.
          batch: Fields of all rows.
          sharding: Where microbatches lie.
          states: Declarations of the state, which say how parts are merged.
        """


@dataclasses.dataclass(frozen=True)
class WholeBatch(Gradients):
    """Computes the gradients of all rows at once."""

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
        return _gradient(objective, states)(params, layer_state, batch)


@dataclasses.dataclass(frozen=True)
class Accumulate(Gradients):
    """Accumulates the gradients of `steps` microbatches, in float32.

    Activations take the memory of one microbatch. Row i of microbatch j is row
    `i * steps + j` of the batch, so that no row moves to another device. Dropout of a
    row depends on its number in the batch, so it does not depend on `steps`. Each
    microbatch begins with the state that the layers had before the step; what they
    leave is merged by the rules of their declarations, sinks by their kind.
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
        replicas = getattr(root.trainer, "num_replicas", 1)
        if replicas > 1:
            smallest, name = smallest // replicas, f"{name} / trainer.num_replicas"
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
        states: States,
    ) -> tuple[Any, Parts]:
        gradient = _gradient(objective, states)

        def microbatches(x: jax.Array) -> jax.Array:
            x = x.reshape(x.shape[0] // self.steps, self.steps, *x.shape[1:])
            axes = (None, "batch", "sequence", *[None] * x.ndim)[: x.ndim]
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
