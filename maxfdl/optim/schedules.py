"""Learning rates by step: frozen dataclasses called as `schedule(step, steps)`."""

import dataclasses
import math

import jax
import jax.numpy as jnp


class Schedule:
    """Gives the learning rate of update `step` (from 0) of a run of `steps`."""

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warm-up from 0 to `peak`, then half a cosine down to a fraction of it.

    For `w = warmup_steps` and `p = (step - w) / (steps - w)`:
    `peak * step / w` before step w, then
    `peak * (f + (1 - f) (1 + cos(pi p)) / 2)` with `f = final_fraction`
    (Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983).
    """

    peak: float
    warmup_steps: int = 0
    final_fraction: float = 0.1

    @staticmethod
    def check_config(node):
        if node.warmup_steps < 0:
            yield f"WarmupCosine warmup_steps ({node.warmup_steps}) must be at least 0."
        if not 0.0 <= node.final_fraction <= 1.0:
            yield (
                f"WarmupCosine final_fraction ({node.final_fraction}) must lie between"
                " 0 and 1."
            )

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        step = step.astype(jnp.float32)
        warmup = step / max(self.warmup_steps, 1)
        decay_steps = max(steps - self.warmup_steps, 1)
        progress = jnp.clip((step - self.warmup_steps) / decay_steps, 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(math.pi * progress))
        decayed = self.final_fraction + (1.0 - self.final_fraction) * cosine
        return self.peak * jnp.where(step < self.warmup_steps, warmup, decayed)
