"""Which steps count: a guard looks at loss and gradients before anything is kept."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SkipNonFinite:
    """Refuses a step whose loss or gradients are not finite.

    Args:
      stop_after: How many refused steps in a row end the run.
    """

    stop_after: int = 10

    @staticmethod
    def check_config(node):
        if node.stop_after < 1:
            yield f"SkipNonFinite stop_after ({node.stop_after}) must be at least 1."

    def init(self) -> dict[str, jax.Array]:
        """Returns the state before the first step: steps refused, and in a row."""
        zero = jnp.zeros((), jnp.int32)
        return {"skipped": zero, "skipped_in_a_row": zero}

    def __call__(
        self, state: dict[str, jax.Array], loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns whether the step counts, and the new state."""
        accepted = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        return accepted, self._counted(state, accepted)

    def _counted(self, state: dict[str, Any], accepted: jax.Array) -> dict[str, Any]:
        in_a_row = jnp.where(accepted, 0, state["skipped_in_a_row"] + 1)
        skipped = state["skipped"] + jnp.where(accepted, 0, 1)
        return state | {"skipped": skipped, "skipped_in_a_row": in_a_row}


@dataclasses.dataclass(frozen=True)
class SkipSpikes(SkipNonFinite):
    """Refuses a step whose loss or gradient norm is far above those of late, too.

    Far is more than `deviations` sample standard deviations above the mean of the last
    `window` finite steps; before half of them are known nothing is far. A refused step
    that is finite is remembered, so that a new level is accepted in time. As OLMo 2
    does, OLMo et al. 2024, https://arxiv.org/abs/2501.00656.

    Args:
      window: Steps that are remembered.
      deviations: How far is too far.
    """

    window: int = 128
    deviations: float = 6.0

    @staticmethod
    def check_config(node):
        yield from SkipNonFinite.check_config(node)
        if node.window < 4:
            yield f"SkipSpikes window ({node.window}) must be at least 4 steps."
        if node.deviations <= 0:
            yield f"SkipSpikes deviations ({node.deviations}) must be positive."

    def init(self) -> dict[str, jax.Array]:
        seen = jnp.zeros((2, self.window), jnp.float32)
        return super().init() | {"seen": seen, "num_seen": jnp.zeros((), jnp.int32)}

    def __call__(
        self, state: dict[str, jax.Array], loss: jax.Array, grad_norm: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        finite, _ = super().__call__(state, loss, grad_norm)
        seen, number = state["seen"], state["num_seen"]
        now = jnp.stack([loss, grad_norm]).astype(jnp.float32)
        known = jnp.minimum(number, self.window)
        is_known = jnp.arange(self.window) < known
        mean = jnp.sum(seen, axis=1) / jnp.maximum(known, 1)
        squares = jnp.where(is_known, jnp.square(seen - mean[:, None]), 0.0)
        deviation = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.maximum(known - 1, 1))
        is_far = jnp.any(now > mean + self.deviations * deviation)
        accepted = finite & ~(is_far & (known >= self.window // 2))
        remembered = seen.at[:, number % self.window].set(now)
        return accepted, self._counted(state, accepted) | {
            "seen": jnp.where(finite, remembered, seen),
            "num_seen": number + jnp.where(finite, 1, 0),
        }
