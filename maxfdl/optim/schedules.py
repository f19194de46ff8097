"""Learning rates by step: frozen dataclasses called as `schedule(step, steps)`."""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from maxfdl.markers import Operational


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Base: linear warm-up from 0 to `peak`, then the shape of the subclass.

    With `w = warmup_steps` the rate of update `step` (from 0) is `peak * step / w`
    before step w, and `peak * part(step - w, steps - w)` from there on.

    Args:
      peak: The highest learning rate.
      warmup_steps: w.
    """

    peak: float
    warmup_steps: int = 0

    @staticmethod
    def check_config(node):
        if not 0.0 <= node.peak < math.inf:
            yield f"Schedule peak ({node.peak}) must be finite and not negative."
        if node.warmup_steps < 0:
            yield f"Schedule warmup_steps ({node.warmup_steps}) must be at least 0."

    def __call__(self, step: jax.Array, steps: int) -> jax.Array:
        """Returns the learning rate of `step` in a run of `steps`."""
        step = step.astype(jnp.float32)
        warmup = step / max(self.warmup_steps, 1)
        after = step - self.warmup_steps
        part = self.part(jnp.maximum(after, 0.0), max(steps - self.warmup_steps, 1))
        return self.peak * jnp.where(after < 0, warmup, part)

    def part(self, after: jax.Array, left: int) -> jax.Array:
        """Returns the fraction of the peak, `after` of `left` steps after warm-up."""
        raise NotImplementedError

    def decay(self, steps: int) -> range:
        """Returns the steps whose rate depends on where the decay ends, which is the
        end of the range, in a run of `steps`; none if nothing decays to an end.

        Two schedules that differ in their ends alone have the same rates before both of
        these ranges.
        """
        return range(steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupConstant(Schedule):
    """Stays at the peak."""

    def part(self, after: jax.Array, left: int) -> jax.Array:
        return jnp.ones_like(after)

    def decay(self, steps: int) -> range:
        return range(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InverseSquareRoot(Schedule):
    """`sqrt(w / step)` with `w = warmup_steps`, which must be at least 1.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 5.3.
    """

    @staticmethod
    def check_config(node):
        yield from Schedule.check_config(node)
        if node.warmup_steps < 1:
            yield (
                f"InverseSquareRoot warmup_steps ({node.warmup_steps}) must be at least"
                " 1, for the rate falls in proportion to it."
            )

    def part(self, after: jax.Array, left: int) -> jax.Array:
        return jax.lax.rsqrt(1.0 + after / self.warmup_steps)

    def decay(self, steps: int) -> range:
        return range(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """Base: decays to a fraction of the peak and stays there.

    Args:
      final_fraction: f, that fraction.
      decay_steps: Steps that the decay takes. A run may go on with another number,
        under the same rules as for the experiment's `steps`.
    """

    final_fraction: float = 0.1
    decay_steps: Annotated[int | None, Operational]

    @staticmethod
    def check_config(node):
        yield from Schedule.check_config(node)
        if not 0.0 <= node.final_fraction <= 1.0:
            yield (
                f"Schedule final_fraction ({node.final_fraction}) must lie between 0"
                " and 1."
            )

        if node.decay_steps is not None and node.decay_steps < 1:
            yield f"Schedule decay_steps ({node.decay_steps}) must be at least 1."

    def fallen(self, shape: jax.Array) -> jax.Array:
        """Returns the fraction of the peak for a shape that falls from 1 to 0."""
        return self.final_fraction + (1.0 - self.final_fraction) * shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromWarmup(Decaying):
    """Decays from the end of the warm-up on.

    Args:
      decay_steps: Steps that the decay takes; None: all that are left of the run.
    """

    decay_steps: Annotated[int | None, Operational] = None

    def progress(self, after: jax.Array, left: int) -> jax.Array:
        """Returns how much of the decay is done, from 0 to 1."""
        return jnp.clip(after / (self.decay_steps or left), 0.0, 1.0)

    def decay(self, steps: int) -> range:
        left = max(steps - self.warmup_steps, 1)
        return range(self.warmup_steps + (self.decay_steps or left))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupCosine(FromWarmup):
    """Half a cosine: `f + (1 - f) (1 + cos(pi p)) / 2` for p from 0 to 1.

    Loshchilov & Hutter 2017, https://arxiv.org/abs/1608.03983.
    """

    def part(self, after: jax.Array, left: int) -> jax.Array:
        progress = self.progress(after, left)
        return self.fallen(0.5 * (1.0 + jnp.cos(math.pi * progress)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeriodicCosine(WarmupCosine):
    """A cosine that rises again once it has fallen, as MaxText's does.

    MaxText's schedule of S steps, W of them warm-up, falls for `S - W - 1` steps.
    """

    def progress(self, after: jax.Array, left: int) -> jax.Array:
        return after / (self.decay_steps or left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupLinear(FromWarmup):
    """A line: `f + (1 - f) (1 - p)` for p from 0 to 1."""

    def part(self, after: jax.Array, left: int) -> jax.Array:
        return self.fallen(1.0 - self.progress(after, left))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmupStableDecay(Decaying):
    """At the peak until `decay_steps` before the end, then down by `shape`.

    WSD of Hu et al. 2024, https://arxiv.org/abs/2404.06395. For p from 0 to 1 over the
    decay the shapes are `1 - p`, `(1 + cos(pi p)) / 2` and `1 - sqrt(p)` (Haegele et
    al. 2024, https://arxiv.org/abs/2405.18392).

    Args:
      decay_steps: Steps of the decay; if fewer follow the warm-up, all of these.
    """

    decay_steps: Annotated[int, Operational]
    shape: Literal["linear", "cosine", "one_minus_sqrt"] = "linear"

    def part(self, after: jax.Array, left: int) -> jax.Array:
        decay = min(self.decay_steps, left)
        progress = jnp.clip((after - (left - decay)) / decay, 0.0, 1.0)
        return self.fallen(_SHAPES[self.shape](progress))

    def decay(self, steps: int) -> range:
        left = max(steps - self.warmup_steps, 1)
        return range(steps - min(self.decay_steps, left), steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDecayToLast(WarmupStableDecay):
    """Reaches its end at the last step of the run, as MaxText's does, not after it.

    The first of the `decay_steps` steps is still at the peak. A cosine rises again
    after its end.
    """

    def part(self, after: jax.Array, left: int) -> jax.Array:
        decay = min(self.decay_steps, left)
        progress = (after - (left - decay)) / max(decay - 1, 1)
        most = math.inf if self.shape == "cosine" else 1.0
        return self.fallen(_SHAPES[self.shape](jnp.clip(progress, 0.0, most)))


_SHAPES = {
    "linear": lambda p: 1.0 - p,
    "cosine": lambda p: 0.5 * (1.0 + jnp.cos(math.pi * p)),
    "one_minus_sqrt": lambda p: 1.0 - jnp.sqrt(p),
}
