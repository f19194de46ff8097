"""What a step does with what routers of experts did."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.errors import UserError
from maxfdl.train.auxiliary import router_loads
from maxfdl.train.updates import Step, Update, Variables


@dataclasses.dataclass(frozen=True)
class SelectionBias(Update):
    """`bias += rate * sign(mean(counts) - counts)`: evens out experts without a loss.

    Counts are those of all tokens of the step, so the bias is the same however the
    batch is cut. Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1.

    Args:
      rate: How far a bias goes in one step.
    """

    name = "selection_bias"
    rate: float = 1e-3

    @staticmethod
    def check_config(node):
        if node.rate < 0:
            yield f"SelectionBias rate ({node.rate}) must not be negative."

    def __call__(
        self, variables: Variables, memory: Any, step: Step
    ) -> tuple[Variables, Any]:
        old = state = variables["state"]
        for path, load in router_loads(step.sinks).items():
            *router, _ = path.split("/")
            state = self._updated(state, router, load.counts.value, step.accepted)
        if state is old:
            raise UserError(
                "SelectionBias has nothing to move, for no router of this model has a"
                " selection bias: set use_selection_bias=True on them, or apply"
                " selection_bias(rate=0)."
            )
        return variables | {"state": state}, memory

    def _updated(
        self, node: Any, path: list[str], counts: jax.Array, accepted: jax.Array
    ) -> Any:
        if path:
            if path[0] not in node:  # a router that has no bias
                return node
            inner = self._updated(node[path[0]], path[1:], counts, accepted)
            return node if inner is node[path[0]] else {**node, path[0]: inner}
        if "selection_bias" not in node:
            return node
        counts = counts.astype(jnp.float32)
        lacking = jnp.mean(counts, axis=-1, keepdims=True) - counts
        bias = node["selection_bias"]
        moved = bias + self.rate * jnp.sign(lacking)
        return {**node, "selection_bias": jnp.where(accepted, moved, bias)}
