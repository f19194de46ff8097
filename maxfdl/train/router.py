"""What a step does with what routers of experts did."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.train.auxiliary import router_loads


class StateUpdate:
    """Changes the state of layers once per step: `update(layer_state, sinks)`."""

    def __call__(self, layer_state: Any, sinks: Mapping[str, Any]) -> Any:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class SelectionBias(StateUpdate):
    """`bias += rate * sign(mean(counts) - counts)`: evens out experts without a loss.

    Counts are those of all tokens of the step, so the bias is the same however the
    batch is cut. Wang et al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1.

    Args:
      rate: How far a bias goes in one step.
    """

    rate: float = 1e-3

    def __call__(self, layer_state: Any, sinks: Mapping[str, Any]) -> Any:
        for path, load in router_loads(sinks).items():
            *router, _ = path.split("/")
            layer_state = self._updated(layer_state, router, load.counts.value)
        return layer_state

    def _updated(self, node: Any, path: list[str], counts: jax.Array) -> Any:
        if path:
            if path[0] not in node:  # a router that has no bias
                return node
            inner = self._updated(node[path[0]], path[1:], counts)
            return {**node, path[0]: inner}
        counts = counts.astype(jnp.float32)
        lacking = jnp.mean(counts, axis=-1, keepdims=True) - counts
        bias = node["selection_bias"]
        return {**node, "selection_bias": bias + self.rate * jnp.sign(lacking)}


def sink_metrics(sinks: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns what is logged of sinks: how much the busiest expert has to do.

    `expert_load` is the greatest count of an expert over the mean of its layer's, in
    any layer: 1 where all are even.
    """
    ratios = []
    for load in router_loads(sinks).values():
        counts = load.counts.value.astype(jnp.float32)
        mean = jnp.maximum(jnp.mean(counts, axis=-1, keepdims=True), 1.0)
        ratios.append(jnp.max(counts / mean))
    return {"expert_load": jnp.max(jnp.stack(ratios))} if ratios else {}
