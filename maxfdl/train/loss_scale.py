"""Dynamic loss scaling, which keeps gradients in the range of float16."""

import dataclasses
import math

import jax
import jax.numpy as jnp

HIGHEST = 2.0**24

Memory = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LossScale:
    """A power of two that multiplies the loss, and divides the gradients afterwards.

    float16 has no numbers below 6e-8 and fewer digits below 6e-5, where gradients of a
    mean over many tokens often lie. A step with a finite loss and gradients that are
    not finite is an overflow, and halves the scale. `growth_interval` finite steps in a
    row double it, up to 2^24. A loss that is not finite leaves it. The scale adds no
    rounding: in float32, steps have the same bits with any scale.

    Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2, with the
    numbers of `torch.amp.GradScaler`.

    Args:
      initial: Scale of the first step, from 1 to 2^24.
      growth_interval: Finite steps in a row that double it.
    """

    initial: float = 2.0**16
    growth_interval: int = 2000

    @staticmethod
    def check_config(node):
        is_power = node.initial > 0 and math.frexp(node.initial)[0] == 0.5
        if not (is_power and 1 <= node.initial <= HIGHEST):
            yield f"LossScale initial ({node.initial}) must be a power of 2, 1 to 2^24."
        if node.growth_interval < 1:
            yield (
                f"LossScale growth_interval ({node.growth_interval}) must be at least 1"
                " step."
            )

    def init(self) -> Memory:
        """Returns the initial scale, and the count of finite steps since it changed."""
        scale = jnp.asarray(self.initial, jnp.float32)
        return {"scale": scale, "finite_steps": jnp.zeros((), jnp.int32)}

    def moved(self, memory: Memory, loss: jax.Array, grad_norm: jax.Array) -> Memory:
        """Returns the scale after a step with this loss and gradient norm."""
        scale, steps = memory["scale"], memory["finite_steps"] + 1
        is_finite = jnp.isfinite(grad_norm)
        grows = is_finite & (steps >= self.growth_interval)
        factor = jnp.where(grows, 2.0, jnp.where(is_finite, 1.0, 0.5))
        steps = jnp.where(is_finite & ~grows, steps, 0)
        moved = {"scale": jnp.clip(scale * factor, 1.0, HIGHEST), "finite_steps": steps}
        known = jnp.isfinite(loss)
        return {name: jnp.where(known, moved[name], memory[name]) for name in memory}
