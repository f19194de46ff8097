"""Guards: accept or reject each step before any of its results is kept."""

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from maxfdl.markers import Operational
from maxfdl.train.loss_scale import LossScale

State = dict[str, Any]

_FURTHEST = 1e10


class Proposal(NamedTuple):
    """What a guard knows of a step, as scalars.

    Fields: `loss`, the whole objective; `grad_norm` and `param_norm`, L2 norms, the
    latter after the last step; `reach`, about how far the update would move parameters,
    see `Optimizer.reach`.
    """

    loss: jax.Array
    grad_norm: jax.Array
    param_norm: jax.Array
    reach: jax.Array


@dataclasses.dataclass(frozen=True)
class GoBack:
    """After too many rejected steps in a row, a run goes back to an earlier checkpoint.

    Its weights and the state of its optimizer are restored, but not its place in the
    data: what came between is passed over, as PaLM did after spikes (Chowdhery et al.
    2022, https://arxiv.org/abs/2204.02311, section 5.1).

    Args:
      steps: The checkpoint is at least so many steps older than the first of the
        rejected steps.
      times: How often one start of a run may do so, before it stops.
    """

    steps: int = 0
    times: int = 3

    @staticmethod
    def check_config(node):
        if node.steps < 0 or node.times < 1:
            yield (
                f"GoBack steps ({node.steps}) must not be negative, and times"
                f" ({node.times}) must be at least 1."
            )


class Guard:
    """Base: accepts or rejects a step; its state holds counts of rejected ones.

    After `stop_after` rejected steps in a row the run goes back as `then` says, or ends
    if that is None. The state must have the keys `skipped` and `skipped_in_a_row`.
    """

    stop_after: int
    then: GoBack | None = None

    @staticmethod
    def check_in(node, root):
        for field in ("dtype", "param_dtype"):
            is_narrow = getattr(root.model, field, None) == "float16"
            if is_narrow and getattr(node, "loss_scale", None) is None:
                yield (
                    f"Experiment model.{field} (float16) needs a"
                    " trainer.guard.loss_scale, for gradients below 6e-8 are 0 in it:"
                    " apply loss_scale, or take bfloat16."
                )

    def init(self) -> State:
        """Returns the initial state."""
        raise NotImplementedError

    def __call__(self, state: State, step: Proposal) -> tuple[jax.Array, State]:
        """Returns whether the step is accepted, and the new state."""
        raise NotImplementedError

    def scaled(self, state: State, weights: dict[str, jax.Array]) -> Any:
        """Returns the weights of the loss terms, divided by the loss scale."""
        return weights

    def unscaled(self, state: State, grads: Any) -> Any:
        """Returns gradients with the loss scale removed, in float32 at least."""
        return grads

    def metrics(self, state: State) -> dict[str, jax.Array]:
        """Returns the metrics of the state."""
        return {name: state[name] for name in ("skipped", "skipped_in_a_row")}


@dataclasses.dataclass(frozen=True)
class SkipNonFinite(Guard):
    """Rejects a step whose loss, gradients or parameters are not finite.

    Also rejects a step that would move parameters by 1e10 or more, an estimate that is
    made from norms and the learning rate: checking the updated parameters themselves
    would take a second copy of them. No usual learning rate comes near.

    Args:
      stop_after: Consecutive rejected steps that end the run.
      loss_scale: Scale of the loss in the backward pass; None is no scaling.
      then: What happens after so many rejected steps; None ends the run.
    """

    stop_after: Annotated[int, Operational] = 10
    loss_scale: LossScale | None = None
    then: Annotated[GoBack | None, Operational] = None

    @staticmethod
    def check_config(node):
        if node.stop_after < 1:
            yield f"SkipNonFinite stop_after ({node.stop_after}) must be at least 1."

    def init(self) -> State:
        zero = jnp.zeros((), jnp.int32)
        state: State = {"skipped": zero, "skipped_in_a_row": zero}
        if self.loss_scale is not None:
            state["loss_scale"] = self.loss_scale.init()
        return state

    def __call__(self, state: State, step: Proposal) -> tuple[jax.Array, State]:
        norms = step.loss, step.grad_norm, step.param_norm
        accepted = jnp.all(jnp.isfinite(jnp.stack(norms))) & (step.reach < _FURTHEST)
        if self.loss_scale is not None:
            scale = self.loss_scale.moved(
                state["loss_scale"], step.loss, step.grad_norm
            )
            state = state | {"loss_scale": scale}
        return accepted, state | self._counted(state, accepted)

    def scaled(self, state: State, weights: dict[str, jax.Array]) -> Any:
        if self.loss_scale is None:
            return weights
        return {k: w / state["loss_scale"]["scale"] for k, w in weights.items()}

    def unscaled(self, state: State, grads: Any) -> Any:
        if self.loss_scale is None:
            return grads

        def unscaled(grad: jax.Array) -> jax.Array:
            wide = jnp.promote_types(grad.dtype, jnp.float32)
            return grad.astype(wide) / state["loss_scale"]["scale"]

        return jax.tree.map(unscaled, grads)

    def metrics(self, state: State) -> dict[str, jax.Array]:
        metrics = super().metrics(state)
        if self.loss_scale is not None:
            metrics["loss_scale"] = state["loss_scale"]["scale"]
        return metrics

    def _counted(self, state: State, accepted: jax.Array) -> State:
        in_a_row = jnp.where(accepted, 0, state["skipped_in_a_row"] + 1)
        skipped = state["skipped"] + jnp.where(accepted, 0, 1)
        return {"skipped": skipped, "skipped_in_a_row": in_a_row}


@dataclasses.dataclass(frozen=True)
class SkipSpikes(SkipNonFinite):
    """Also rejects a step whose loss or gradient norm is far above recent ones.

    The limit is the mean of the last `window` finite steps plus `deviations` sample
    standard deviations; it applies once half a window is known. Rejected steps that are
    finite enter the window, so that a lasting change of level is accepted after a
    while. As in OLMo 2 (OLMo et al. 2024, https://arxiv.org/abs/2501.00656).

    Args:
      window: Steps in the window.
      deviations: Standard deviations above the mean that are still accepted.
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

    def init(self) -> State:
        seen = jnp.zeros((2, self.window), jnp.float32)
        return super().init() | {"seen": seen, "num_seen": jnp.zeros((), jnp.int32)}

    def __call__(self, state: State, step: Proposal) -> tuple[jax.Array, State]:
        finite, after = super().__call__(state, step)
        seen, number = state["seen"], state["num_seen"]
        now = jnp.stack([step.loss, step.grad_norm]).astype(jnp.float32)
        known = jnp.minimum(number, self.window)
        is_known = jnp.arange(self.window) < known
        mean = jnp.sum(seen, axis=1) / jnp.maximum(known, 1)
        squares = jnp.where(is_known, jnp.square(seen - mean[:, None]), 0.0)
        deviation = jnp.sqrt(jnp.sum(squares, axis=1) / jnp.maximum(known - 1, 1))
        is_far = jnp.any(now > mean + self.deviations * deviation)
        accepted = finite & ~(is_far & (known >= self.window // 2))
        remembered = seen.at[:, number % self.window].set(now)
        return accepted, after | self._counted(state, accepted) | {
            "seen": jnp.where(finite, remembered, seen),
            "num_seen": number + jnp.where(finite, 1, 0),
        }
