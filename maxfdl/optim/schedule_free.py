"""Schedule-free learning: averages the weights instead of decaying the rate."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class ScheduleFree:
    """Trains at y, between the weights z that take the steps and their average x.

    `z' = z - lr * direction(y)`, `x' = (1 - c) x + c z'` with `c = lr^2 / sum(lr^2)`
    over all steps so far, and `y = (1 - b1) z + b1 x`. Gradients and weight decay are
    taken at y, which is what `params` holds; x is what to evaluate and keep. Needs a
    schedule that warms up and does not fall, and rules without momentum of their own.

    Defazio et al. 2024, https://arxiv.org/abs/2405.15682, algorithm 1.
    `optax.contrib.schedule_free` is not used: its count of steps is one ahead of the
    rule's, so that it weights the average with the learning rate of another step.

    State: one array per parameter, z.

    Args:
      b1: Share of the average in y; 0.9 to 0.98.
    """

    b1: float = 0.9

    @staticmethod
    def check_config(node):
        if not 0.0 < node.b1 <= 1.0:
            yield (
                f"ScheduleFree b1 ({node.b1}) must lie above 0 and not above 1, for"
                " the average is found from y."
            )

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """Returns the transform that turns scaled updates of z into updates of y."""

        def init(params):
            # Copied, for a step donates both.
            z = jax.tree.map(jnp.copy, params)
            return ScheduleFreeState(jnp.zeros((), jnp.float32), z)

        def update(updates, state, params=None, **extra):
            weight = jnp.square(extra["rate"])
            total = state.total + weight
            # 0 as long as the warm-up has not left 0, where nothing moves.
            c = weight / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
            # y' - y by the formulas above, without x.
            moves = jax.tree.map(
                lambda u, z, y: c * (z - y) + (1.0 - self.b1 * (1.0 - c)) * u,
                updates,
                state.z,
                params,
            )
            return moves, ScheduleFreeState(
                total, optax.apply_updates(state.z, updates)
            )

        return optax.GradientTransformationExtraArgs(init, update)

    def average(self, params: Any, state: "ScheduleFreeState") -> Any:
        """Returns x, from y and z."""
        return jax.tree.map(
            lambda y, z: (y + (1.0 / self.b1 - 1.0) * (y - z)).astype(y.dtype),
            params,
            state.z,
        )


class ScheduleFreeState(NamedTuple):
    """The sum of squared learning rates, and z, a tree like the parameters."""

    total: jax.Array
    z: Any
