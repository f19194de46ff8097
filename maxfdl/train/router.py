"""Updates of routers of experts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.train.auxiliary import router_loads
from maxfdl.train.nested import part_at, with_part
from maxfdl.train.updates import Step, Update, Variables

_BIAS, _FIELD = "selection_bias", "use_selection_bias"


@dataclasses.dataclass(frozen=True)
class SelectionBias(Update):
    """`bias += rate * sign(mean(counts) - counts)`: load balance without a loss.

    Counts are those of all tokens of the step, so microbatches and meshes do not change
    the bias. Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1.

    Args:
      rate: By how much a bias changes in one step.
      decay: Share of a bias that each step takes off first, times the learning rate. To
        MaxText before 0.2.5 biases are parameters, which AdamW decays.
    """

    name = "selection_bias"
    rank = 0
    rate: float = 1e-3
    decay: float = 0.0

    @staticmethod
    def check_config(node):
        for name in ("rate", "decay"):
            value = getattr(node, name)
            if value < 0:
                yield f"SelectionBias {name} ({value}) must not be negative."

    @staticmethod
    def check_in(node, root):
        layers = root.model.below()
        if not any(getattr(each, _FIELD, False) for each in layers):
            yield (
                "SelectionBias has nothing to update, for no router of this model has a"
                f" selection bias: set {_FIELD}=True on them, or apply"
                " selection_bias(rate=0)."
            )

    def __call__(
        self, variables: Variables, memory: Any, step: Step
    ) -> tuple[Variables, Any]:
        state, moved = variables["state"], False
        for key, load in router_loads(step.sinks).items():
            router = part_at(state, key.layer)
            if router is None or _BIAS not in router:
                continue
            bias = self._moved(router[_BIAS], load.counts.value, step.learning_rate)
            bias = jnp.where(step.accepted, bias, router[_BIAS])
            state = with_part(state, (*key.layer, _BIAS), bias)
            moved = True
        assert moved, "check_in asks for a router with a bias"
        return variables | {"state": state}, memory

    def _moved(
        self, bias: jax.Array, counts: jax.Array, learning_rate: jax.Array | float
    ) -> jax.Array:
        if self.decay:
            bias = bias - learning_rate * self.decay * bias
        counts = counts.astype(jnp.float32)
        lacking = jnp.mean(counts, axis=-1, keepdims=True) - counts
        return bias + self.rate * jnp.sign(lacking)
