"""Moving average of the weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maxfdl.layers.frozen import trained
from maxfdl.optim import by_repeat
from maxfdl.train.updates import Step, Update, Variables


@dataclasses.dataclass(frozen=True)
class WeightAverage(Update):
    """An exponential moving average of the weights, which is evaluated and exported.

    After n steps it is `sum_i decay^(n-i) params_i / sum_i decay^(n-i)`: it is
    corrected for its start at 0, as Adam's moments are. Keeps one float32 array per
    trained parameter. Polyak & Juditsky 1992.

    Args:
      decay: Weight of the old average in each step.
    """

    name = "weight_average"
    rank = 2
    averages = True
    decay: float = 0.999

    @staticmethod
    def check_config(node):
        if not 0.0 <= node.decay < 1.0:
            yield f"WeightAverage decay ({node.decay}) must be at least 0 and below 1."

    def init(self, params: Any) -> Any:
        zeros = lambda p: jnp.zeros(p.shape, jnp.float32)  # noqa: E731
        return {
            "average": jax.tree.map(zeros, params),
            "steps": jnp.zeros((), jnp.int32),
        }

    def shardings(self, of_params: Any, other: Any) -> Any:
        return {"average": of_params, "steps": other}

    def __call__(
        self, variables: Variables, memory: Any, step: Step
    ) -> tuple[Variables, Any]:
        steps = memory["steps"] + 1
        n = steps.astype(jnp.float32)
        stays = self.decay * (1.0 - self.decay ** (n - 1.0)) / (1.0 - self.decay**n)

        def change(declared, average, params):
            return jax.tree.map(
                lambda a, p: a + (1.0 - stays) * (p.astype(a.dtype) - a),
                average,
                params,
            )

        average = by_repeat.changed(
            change,
            lambda declared, params: (params, params),
            trained(step.parameters),
            memory["average"],
            variables["params"],
            step.accepted,
        )
        return variables, {
            "average": average,
            "steps": jnp.where(step.accepted, steps, memory["steps"]),
        }

    def evaluated(self, params: Any, memory: Any) -> Any:
        """Returns the average; before the first step, the weights."""
        began = memory["steps"] > 0
        return jax.tree.map(
            lambda a, p: jnp.where(began, a.astype(p.dtype), p),
            memory["average"],
            params,
        )
